package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/cluster"
)

// importsEnv makes the test's program a child that imports what its standard input names, see runImports.
const importsEnv = "TARLIFT_TEST_IMPORTS"

// imports are what one process is to import at the same time.
type imports struct {
	Address string // of containerd
	Sources []string
	Image   string // the only one that is wanted
}

// runImports imports all sources at once with one Importer, as a node's agent does, and prints the errors. It ends when its
// standard input does, so that its parent can look at it meanwhile.
func runImports() int {
	var all imports
	in := json.NewDecoder(os.Stdin)
	if err := in.Decode(&all); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	i, err := importer.New(importer.Options{Address: all.Address})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	results := make([]string, len(all.Sources))
	var wg sync.WaitGroup
	for k, url := range all.Sources {
		wg.Go(func() {
			if err := importURL(i, url, strconv.Itoa(k), all.Image); err != nil {
				results[k] = err.Error()
			}
		})
	}
	wg.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, in.Buffered())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func importURL(i *importer.Importer, url, uid, image string) error {
	ctx := context.Background()
	b, err := source.OpenHTTP(ctx, source.HTTPOptions{URL: url, Anywhere: true})
	if err != nil {
		return err
	}
	defer b.Close()
	req := request(uid)
	req.Unpack = false
	req.Selection.Include = []string{image}
	_, err = i.Import(ctx, b, req)
	return err
}

// Whatever eight archives hold at the same time, the process stays below half of what the chart lets the agent have.
func TestMemoryOfEightImports(t *testing.T) {
	const image = "memory.example/wanted:*"
	window := make([][]byte, 8)
	documents := make([][]byte, len(window))
	both := make([][]byte, len(window))
	for k := range window {
		data := tarOf(t, builder.Archive{Images: []builder.Image{oneFile(fmt.Sprintf("memory.example/wanted:%d", k), redundant(uint64(k), 44<<20))}})
		window[k] = zstdOf(t, data)
		documents[k] = muchMetadata(t, k)
		both[k] = zstdOf(t, documents[k])
	}
	for _, tc := range []struct {
		name   string
		data   [][]byte
		stream bool
	}{
		{"streams with the largest window", window, true},
		{"as much metadata as is allowed", documents, false},
		{"streams of as much metadata", both, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := startRuntime(t, cluster.ContainerdOptions{})
			srv := httptest.NewServer(stallingServer(tc.data, tc.stream))
			defer srv.Close()
			var urls []string
			for k := range tc.data {
				urls = append(urls, fmt.Sprintf("%s/%d", srv.URL, k))
			}
			began := time.Now()
			results, peak := childImports(t, imports{r.ContainerdAddress, urls, image})
			t.Logf("%d MiB, %s", peak>>20, time.Since(began).Round(time.Millisecond))
			if peak > mostMemory {
				t.Errorf("%d MiB, more than %d", peak>>20, mostMemory>>20)
			}
			for k, result := range results {
				if result != "" {
					t.Errorf("archive %d: %s", k, result)
				}
			}
		})
	}
}

// childImports runs a child, with the settings of the collector that the node's agent has, and tells its largest resident set in bytes.
func childImports(t *testing.T, all imports) (results []string, peak int64) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), importsEnv+"=1", "GOGC=40", "GOMEMLIMIT=80MiB")
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(in).Encode(all); err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(out).Decode(&results); err != nil {
		t.Fatal(err)
	}
	peak = residentPeak(cmd.Process.Pid)
	in.Close()
	if err := cmd.Wait(); err != nil || peak == 0 || len(results) != len(all.Sources) {
		t.Fatalf("%d MiB, %d results, %v", peak>>20, len(results), err)
	}
	return results, peak
}

// stallingServer serves archives by their numbers. Streams have no ranges, and pause when a decoder has its whole window.
func stallingServer(data [][]byte, stream bool) http.Handler {
	const pause = 2 * time.Second
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		k, err := strconv.Atoi(strings.TrimPrefix(req.URL.Path, "/"))
		if err != nil || k >= len(data) {
			http.NotFound(w, req)
			return
		}
		if !stream {
			w.Header().Set("ETag", `"1"`)
			http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data[k]))
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data[k])))
		if req.Method == http.MethodHead {
			return
		}
		late := len(data[k]) * 9 / 10
		if _, err := w.Write(data[k][:late]); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(pause):
		case <-req.Context().Done():
			return
		}
		_, _ = w.Write(data[k][late:]) // the client says what it lacks
	})
}

// zstdOf compresses with the largest window that is read, as `zstd --long=25` does.
func zstdOf(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(archive.MaxWindowBytes), zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err == nil {
		_, err = bufio.NewReader(bytes.NewReader(data)).WriteTo(w) // in pieces, so that the frame has a window
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// redundant is a file that shrinks to a quarter, which is still more than what is on its way in a connection: of each 128 KiB
// the first 32 KiB are new.
func redundant(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, size)
	for k := 0; k < size; k += 128 << 10 {
		for b := k; b < k+32<<10; b += 8 {
			binary.LittleEndian.PutUint64(data[b:], r.Uint64())
		}
	}
	return data
}

func oneFile(name string, data []byte) builder.Image {
	return builder.Image{Names: []string{name}, Platforms: []builder.PlatformImage{{
		Platform: builder.Platform("linux/amd64"), Layers: []builder.Layer{{Files: []builder.File{{Name: "file", Data: data}}}},
	}}}
}

// muchMetadata is an archive of one wanted image near all bounds: the sum of the metadata, the sizes of index, manifest and
// config with their values, the descriptors of the index, and the members.
func muchMetadata(t *testing.T, k int) []byte {
	t.Helper()
	members := []builder.Member{builder.FileMember("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))}
	blob := func(mediaType string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		members = append(members, builder.FileMember(builder.BlobPath(d.Digest), data))
		return d
	}
	many := make(map[string]string, 80_000)
	for n := range 80_000 {
		many[fmt.Sprintf("%d-%d", k, n)] = "0123456789"
	}
	config := ocispec.Image{Platform: builder.Platform("linux/amd64"), RootFS: ocispec.RootFS{Type: "layers"}}
	config.Config.Labels, config.Author = many, strings.Repeat("x", 4<<20)
	two := specs.Versioned{SchemaVersion: 2}
	manifest := blob(ocispec.MediaTypeImageManifest, jsonOf(t, ocispec.Manifest{
		Versioned: two, MediaType: ocispec.MediaTypeImageManifest, Annotations: many, Layers: []ocispec.Descriptor{},
		Config: blob(ocispec.MediaTypeImageConfig, jsonOf(t, config)),
	}))
	index := ocispec.Index{Versioned: two}
	for n := range archive.MaxDescriptors {
		d := manifest
		name := fmt.Sprintf("memory.example/%s:%d", strings.Repeat("unwanted-", 25), n)
		if n == 0 {
			name = fmt.Sprintf("memory.example/wanted:%d", k)
		}
		d.Annotations = map[string]string{images.AnnotationImageName: name}
		index.Manifests = append(index.Manifests, d)
	}
	members = append(members, builder.FileMember("index.json", jsonOf(t, index)))
	for n := len(members); n < archive.MaxMembers; n++ {
		members = append(members, builder.FileMember(fmt.Sprintf("unused/%d", n), nil))
	}
	data, err := builder.TarBytes(members...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func jsonOf(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
