package importer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/inprocess"
)

func TestMain(m *testing.M) {
	_ = log.SetLevel("error") // containerd's store warns of file systems without fs-verity
	goleak.VerifyTestMain(m)
}

// node is containerd's own content store and metadata database in this process, with an importer on top: what a
// node has but for the snapshotter, in milliseconds.
type node struct {
	*Importer
	db *metadata.DB
}

// inProcess options keep no reserve: there is no containerd that could say where it writes to.
var inProcess = func() Options {
	o := Options{Namespace: "k8s.io"}
	if err := o.Reserve.Set("0"); err != nil {
		panic(err)
	}
	return o
}()

func newNode(t testing.TB, platform string) *node {
	t.Helper()
	in := inprocess.New(t)
	c, err := client.New("", client.WithServices(
		client.WithContentStore(in.Content),
		client.WithImageStore(in.Images),
		client.WithLeasesService(in.Leases),
	), client.WithDefaultNamespace("k8s.io"))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{newImporter(c, inProcess, platforms.Normalize(platforms.MustParse(platform))), in.DB}
	n.services.containers = in.Containers
	n.connect()
	return n
}

// other is an importer of another process beside this one.
func (n *node) other(platform string) *node {
	o := &node{newImporter(n.client, inProcess, platforms.Normalize(platforms.MustParse(platform))), n.db}
	o.services = n.services
	o.connect()
	return o
}

// useImages lets the importer write names through another store. It returns how to go back.
func (n *node) useImages(s images.Store) (back func()) {
	was := n.services.images
	n.services.images = s
	n.connect()
	return func() {
		n.services.images = was
		n.connect()
	}
}

// useContent is the same for blobs.
func (n *node) useContent(s content.Store) (back func()) {
	was := n.services.content
	n.services.content = s
	n.connect()
	return func() {
		n.services.content = was
		n.connect()
	}
}

// The labels of names. The CRI looks for its own, and later versions for ours.
const (
	labelPinned      = "io.cri-containerd.pinned"
	valuePinned      = "pinned"
	labelManaged     = "io.cri-containerd.image"
	valueManaged     = "managed"
	importLabel      = "tarlift.dev/import"
	ownerLabelPrefix = "tarlift.dev/archive."
)

func ownerLabel(o Owner) string {
	if o.UID == "" {
		return importLabel
	}
	return ownerLabelPrefix + o.UID
}

func isOwnerLabel(k string) bool { return k == importLabel || strings.HasPrefix(k, ownerLabelPrefix) }

// state is everything that an import could change, in comparable form.
type state struct {
	Images, Content, Ingests, Leases []string
}

func (n *node) state(t testing.TB) state {
	t.Helper()
	ctx := n.in(t.Context())
	var s state
	list, err := n.services.images.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		s.Images = append(s.Images, fmt.Sprintf("%s %s %s", img.Name, img.Target.Digest, sortedLabels(img.Labels)))
	}
	err = n.services.content.Walk(ctx, func(i content.Info) error {
		s.Content = append(s.Content, i.Digest.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ingests, err := n.services.content.ListStatuses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ingests {
		s.Ingests = append(s.Ingests, i.Ref)
	}
	held, err := n.services.leases.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range held {
		s.Leases = append(s.Leases, l.ID)
	}
	for _, list := range [][]string{s.Images, s.Content, s.Ingests, s.Leases} {
		slices.Sort(list)
	}
	return s
}

// sortedLabels leaves out the number of the publishing that wrote a name.
func sortedLabels(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+serialField.ReplaceAllString(labels[k], ""))
	}
	return strings.Join(out, ",")
}

var serialField = regexp.MustCompile(`,"serial":\d+`)

// image returns a published image, nil if there is none of that name.
func (n *node) image(t *testing.T, name string) *images.Image {
	t.Helper()
	img, err := n.services.images.Get(n.in(t.Context()), name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return &img
}

func (n *node) has(t *testing.T, d digest.Digest) bool {
	t.Helper()
	_, err := n.services.content.Info(n.in(t.Context()), d)
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// ids are the digests of the configs of these images, each with the target of the first image that has it.
func (n *node) ids(t *testing.T, names ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range slices.Sorted(slices.Values(names)) {
		img := n.image(t, name)
		if img == nil {
			continue
		}
		config, err := images.Config(n.in(t.Context()), n.services.content, img.Target, platforms.Only(n.platform))
		if err != nil {
			t.Fatal(err)
		}
		if all[config.Digest.String()] == "" {
			all[config.Digest.String()] = img.Target.Digest.String()
		}
	}
	return all
}

func unchanged(t *testing.T, before, after state) {
	t.Helper()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the store changed (-before +after):\n%s", diff)
	}
}

// memory is a source in memory that counts, and fails where a test wants it to.
type memory struct {
	*bytes.Reader
	stream  bool
	read    atomic.Int64
	opened  atomic.Int64             // sections
	onBytes func(offset int64) error // injected fault: called for each read with its offset
}

var _ source.Blob = (*memory)(nil)

func (m *memory) Section(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if n < 0 {
		n = m.Size() - off
	}
	m.opened.Add(1)
	return io.NopCloser(io.NewSectionReader(m, off, n)), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if m.onBytes != nil {
		if err := m.onBytes(off); err != nil {
			return 0, err
		}
	}
	n, err := m.Reader.ReadAt(p, off)
	m.read.Add(int64(n))
	return n, err
}

func (m *memory) RandomAccess() bool { return !m.stream }
func (m *memory) Remote() bool       { return false }
func (m *memory) BytesRead() int64   { return m.read.Load() }
func (m *memory) Validator() string  { return "" }
func (m *memory) String() string     { return "memory" }
func (m *memory) Close() error       { return nil }

func build(t *testing.T, a builder.Archive) *builder.Built {
	t.Helper()
	b, err := a.Build()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func blobOf(t *testing.T, b *builder.Built, stream bool) *memory {
	t.Helper()
	var buf bytes.Buffer
	if _, err := b.WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	return &memory{Reader: bytes.NewReader(buf.Bytes()), stream: stream}
}
