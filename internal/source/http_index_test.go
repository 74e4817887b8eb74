package source_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/source"
)

// shape is what an archive consists of: images of some platforms, each with a manifest, a config and layers.
type shape struct {
	images, platforms, layers int
	layer                     func(r *rand.Rand) int64 // size in bytes
}

// asBuilt are layers as Dockerfiles make them: a third is tiny, half are programs and libraries.
func asBuilt(r *rand.Rand) int64 {
	switch x := r.Float64(); {
	case x < 0.35:
		return 100 + r.Int64N(1900)
	case x < 0.5:
		return 2000 + r.Int64N(100_000)
	default:
		return 100_000 + r.Int64N(20_000_000)
	}
}

// likeWindows are layers about as large as the largest window.
func likeWindows(r *rand.Rand) int64 { return 70_000 + r.Int64N(10_000) }

// shapes have about 10, 100 and 1,000 members.
var shapes = map[string]shape{
	"members=10":   {1, 1, 6, asBuilt},
	"members=100":  {4, 5, 3, asBuilt},
	"members=1000": {20, 5, 8, asBuilt},

	"members=244, small": {2, 5, 22, func(r *rand.Rand) int64 { return 10_000 + r.Int64N(50_000) }},
}

var architectures = []string{"amd64", "arm64", "arm", "ppc64le", "s390x"}

// member of an archive; one without data is a hole.
type member struct {
	name string
	size int64
	data []byte
}

// build writes such an archive in the order of `ctr images export`: blobs by digest, then what names
// them. needed is the size of the blobs of the first platform.
func (s shape) build(tb testing.TB) (path string, needed int64) {
	tb.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	var members []member
	blob := func(mediaType string, v any) ocispec.Descriptor {
		size, isHole := v.(int64)
		if isHole {
			d := digest.FromString(fmt.Sprint(r.Uint64()))
			members = append(members, member{"blobs/sha256/" + d.Encoded(), size, nil})
			return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: size}
		}
		data := marshal(tb, v)
		d := digest.FromBytes(data)
		members = append(members, member{"blobs/sha256/" + d.Encoded(), int64(len(data)), data})
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	two, top := specs.Versioned{SchemaVersion: 2}, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for range s.images {
		index := ocispec.Index{Versioned: two, MediaType: ocispec.MediaTypeImageIndex}
		for p, arch := range architectures[:s.platforms] {
			m := ocispec.Manifest{Versioned: two, MediaType: ocispec.MediaTypeImageManifest}
			for range s.layers {
				m.Layers = append(m.Layers, blob(ocispec.MediaTypeImageLayerGzip, s.layer(r)))
			}
			platform := ocispec.Platform{OS: "linux", Architecture: arch}
			m.Config = blob(ocispec.MediaTypeImageConfig, ocispec.Image{
				Author: strings.Repeat("x", 500+r.IntN(7000)), Platform: platform, RootFS: ocispec.RootFS{Type: "layers"},
			})
			d := blob(ocispec.MediaTypeImageManifest, m)
			d.Platform = &platform
			index.Manifests = append(index.Manifests, d)
			if p > 0 {
				continue
			}
			for _, x := range append(m.Layers, m.Config, d) {
				needed += x.Size
			}
		}
		top.Manifests = append(top.Manifests, blob(ocispec.MediaTypeImageIndex, index))
	}
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	last := func(name string, v any) {
		data := marshal(tb, v)
		members = append(members, member{name, int64(len(data)), data})
	}
	last(ocispec.ImageIndexFile, top)
	last(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	return writeTar(tb, members), needed
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// writeTar writes a file that takes little room, whatever its size.
func writeTar(tb testing.TB, members []member) (path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "a.tar")
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	off := int64(0)
	for _, m := range members {
		var head bytes.Buffer
		// tar.Writer would want the bytes of a hole: it is used for the header alone.
		err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: m.name, Size: m.size, Mode: 0o644, Typeflag: tar.TypeReg})
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := f.WriteAt(append(head.Bytes(), m.data...), off); err != nil {
			tb.Fatal(err)
		}
		off += int64(head.Len()) + (m.size+511)/512*512
	}
	if err := f.Truncate(off + 1024); err != nil {
		tb.Fatal(err)
	}
	return path
}

// farServer serves a file from far away: each answer begins a round trip after its request, and comes at so many bytes
// a second, 0 for as many as there are.
type farServer struct {
	*httptest.Server
	*countingListener
	requests atomic.Int64
}

func serveFrom(tb testing.TB, path string, roundTrip time.Duration, rate int) *farServer {
	tb.Helper()
	s := &farServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		time.Sleep(roundTrip)
		if rate > 0 {
			w = &slowWriter{w, rate, time.Now()}
		}
		http.ServeFile(w, r, path)
	}))
	s.countingListener = &countingListener{Listener: s.Server.Listener}
	s.Server.Listener = s.countingListener
	s.Start()
	tb.Cleanup(s.Close)
	return s
}

// slowWriter writes at a rate in bytes a second.
type slowWriter struct {
	http.ResponseWriter
	rate int
	free time.Time // when all that was written has passed
}

func (w *slowWriter) Write(p []byte) (n int, err error) {
	for piece := range slices.Chunk(p, 4<<10) {
		w.free = w.free.Add(time.Duration(len(piece)) * time.Second / time.Duration(w.rate))
		time.Sleep(time.Until(w.free))
		k, err := w.ResponseWriter.Write(piece)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, http.NewResponseController(w.ResponseWriter).Flush()
}

// index reads what an import reads before it asks for the first layer: all headers, and the metadata
// of one platform.
func index(ctx context.Context, opts source.HTTPOptions) error {
	b, err := source.OpenHTTP(ctx, opts)
	if err != nil {
		return err
	}
	defer b.Close()
	tree, err := archive.ReadTree(ctx, b, b.Size())
	if err != nil {
		return err
	}
	layout, err := archive.Decode(ctx, tree)
	if err != nil {
		return err
	}
	fetch := func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
		return layout.ReadBlob(ctx, d, archive.MaxConfigBytes)
	}
	for _, target := range layout.Manifests {
		leaves, err := (&archive.Resolver{Fetch: fetch}).PlatformManifests(ctx, target)
		if err != nil {
			return err
		}
		m, err := archive.ReadManifest(ctx, fetch, leaves[0].Descriptor)
		if err != nil {
			return err
		}
		if _, err := fetch(ctx, m.Config); err != nil {
			return err
		}
	}
	return nil
}

// Near a server the index takes few bytes: 1 MiB and 2 % of the blobs that a node needs, and 4 KiB for each request. Far
// away it takes few requests.
func TestHTTPIndex(t *testing.T) {
	for name, tc := range map[string]struct {
		shape
		near, far int64 // requests
	}{
		"members=10":             {shapes["members=10"], 6, 5},
		"members=100":            {shapes["members=100"], 80, 50},
		"members=1000":           {shapes["members=1000"], 750, 550},
		"members=244, small":     {shapes["members=244, small"], 280, 20},
		"members=like a window":  {shape{5, 5, 6, likeWindows}, 200, 30},
		"members=small and many": {shape{10, 5, 5, func(r *rand.Rand) int64 { return r.Int64N(1000) }}, 20, 12},
	} {
		path, needed := tc.build(t)
		for where, roundTripBytes := range map[string]int64{"near": 1, "far": 1 << 20} {
			t.Run(name+"/"+where, func(t *testing.T) {
				srv := serveFrom(t, path, 0, 0)
				if err := index(t.Context(), source.WithroundTripBytes(quick(srv.URL), roundTripBytes)); err != nil {
					t.Fatal(err)
				}
				requests := srv.requests.Load()
				t.Logf("%d requests, %d KiB on the wire, %d needed later", requests, srv.sent.Load()>>10, needed>>10)
				if most := map[string]int64{"near": tc.near, "far": tc.far}[where]; requests > most {
					t.Errorf("%d requests, more than %d", requests, most)
				}
				if limit := needed/50 + 1<<20 + requests*4<<10; where == "near" && srv.sent.Load() > limit {
					t.Errorf("%d bytes on the wire, %d are allowed", srv.sent.Load(), limit)
				}
				if n := srv.accepted.Load(); n > 2 { // net/http gives one up when its own goroutines are late
					t.Errorf("%d connections", n)
				}
			})
		}
	}
}

// BenchmarkHTTPIndex measures what a server's distance costs before the first layer is asked for.
func BenchmarkHTTPIndex(b *testing.B) {
	for _, name := range []string{"members=10", "members=100", "members=1000"} {
		path, _ := shapes[name].build(b)
		for _, roundTrip := range []time.Duration{0, 50 * time.Millisecond, 100 * time.Millisecond} {
			b.Run(fmt.Sprintf("%s/roundtrip=%s", name, roundTrip), func(b *testing.B) {
				srv := serveFrom(b, path, roundTrip, 0)
				b.ReportAllocs()
				for b.Loop() {
					if err := index(b.Context(), quick(srv.URL)); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(srv.requests.Load())/float64(b.N), "requests/op")
				b.ReportMetric(float64(srv.sent.Load())/float64(b.N), "wire-B/op")
			})
		}
	}
}

// BenchmarkHTTPIndexSlow measures an archive of small layers over links of 10 Mbit/s, as ships and satellites have.
func BenchmarkHTTPIndexSlow(b *testing.B) {
	path, _ := shapes["members=244, small"].build(b)
	for _, roundTrip := range []time.Duration{150 * time.Millisecond, 600 * time.Millisecond} {
		b.Run(fmt.Sprint("roundtrip=", roundTrip), func(b *testing.B) {
			srv := serveFrom(b, path, roundTrip, 1_250_000)
			for b.Loop() {
				if err := index(b.Context(), quick(srv.URL)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(srv.requests.Load())/float64(b.N), "requests/op")
			b.ReportMetric(float64(srv.sent.Load())/float64(b.N), "wire-B/op")
		})
	}
}
