package importer

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// bringing is a session that has all blobs of an archive below its lease, and has published nothing.
type bringing struct {
	*session
	ctx     context.Context
	names   []publication
	publish func(names []publication) error
}

func (n *node) bringing(t *testing.T, src *memory, req Request) bringing {
	t.Helper()
	s, ctx, err := n.begin(n.in(t.Context()), req)
	if err != nil {
		t.Fatal(err)
	}
	a, plan, err := s.bring(ctx, src, req)
	if err != nil {
		t.Fatal(err)
	}
	return bringing{s, ctx, plan.names(), func(names []publication) error {
		return s.publish(ctx, names, req, newRecord(req, src.String(), s.result(src, a, plan), "", len(names)))
	}}
}

// killed is a session that brings all blobs of an archive, writes the first of its names, and then is gone like a
// process that was killed: nothing is cleared up but what the daemon does for a broken connection.
func killed(t *testing.T, n *node, src *memory, req Request, writes int) {
	t.Helper()
	whole, left := n.services.images, writes
	n.services.images = fatalImages{whole, &left}
	defer func() { n.services.images = whole }()
	s := n.bringing(t, src, req)
	dead := make(chan error, 1)
	go func() {
		defer close(dead)
		dead <- s.publish(s.names)
	}()
	for err := range dead {
		t.Fatalf("published to the end, error %v", err)
	}
	if err := s.life.writer.Close(); err != nil {
		t.Fatal(err)
	}
}

// fatalImages end the goroutine that wants to make the k-th write.
type fatalImages struct {
	images.Store
	left *int
}

func (f fatalImages) Create(ctx context.Context, i images.Image) (images.Image, error) {
	f.count()
	return f.Store.Create(ctx, i)
}

func (f fatalImages) Update(ctx context.Context, i images.Image, paths ...string) (images.Image, error) {
	f.count()
	return f.Store.Update(ctx, i, paths...)
}

func (f fatalImages) count() {
	if *f.left == 0 {
		runtime.Goexit()
	}
	*f.left--
}

func TestRecover(t *testing.T) {
	one, two := version(t, "one"), twoImages()
	b := build(t, two)
	other := owner
	other.SpecHash = "another"
	for _, tc := range []struct {
		name     string
		owner    Owner
		wanted   []Owner
		finished bool
	}{
		{"wanted", owner, []Owner{owner}, true},
		{"another spec is wanted", owner, []Owner{other}, false},
		{"another archive is wanted", owner, []Owner{named("other", "9")}, false},
		{"agent import", Owner{}, nil, true},
	} {
		for writes := range 4 { // two names, and a digest reference each
			n := newNode(t, "linux/amd64")
			bystander(t, n)
			// One of the names moves, from an image that is this owner's.
			if _, err := n.Import(t.Context(), blobOf(t, one, false), wanted(tc.owner)); err != nil {
				t.Fatal(err)
			}
			before := n.state(t)
			killed(t, n, blobOf(t, b, false), wanted(tc.owner), writes)
			partial := n.state(t)
			if len(partial.Leases) != 1 {
				t.Fatalf("%s, after %d writes: leases %v", tc.name, writes, partial.Leases)
			}
			if (writes > 0) == slices.Equal(before.Images, partial.Images) {
				t.Fatalf("%s: %d writes published %v", tc.name, writes, partial.Images)
			}
			if err := n.Recover(t.Context(), tc.wanted, nil); err != nil {
				t.Fatal(err)
			}
			after := n.state(t)
			if len(after.Leases)+len(after.Ingests) != 0 {
				t.Errorf("%s, after %d writes: leases %v, ingests %v", tc.name, writes, after.Leases, after.Ingests)
			}
			if !tc.finished {
				unchanged(t, before, after)
				continue
			}
			if _, loss, ok, err := n.Imported(t.Context(), tc.owner); !ok || loss != "" || err != nil {
				t.Errorf("%s, after %d writes: imported %v, error %v", tc.name, writes, ok, err)
			}
		}
	}
}

// What lives is left alone, and what has died before it had a lease goes.
func TestRecoverTellsTheLiving(t *testing.T) {
	n := newNode(t, "linux/amd64")
	ctx := n.in(t.Context())
	s, _, err := n.begin(ctx, wanted(owner))
	if err != nil {
		t.Fatal(err)
	}
	run, _, err := n.begin(ctx, wanted(Owner{}))
	if err != nil {
		t.Fatal(err)
	}
	before := n.state(t)
	if err := n.Recover(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	unchanged(t, before, n.state(t))
	if _, _, err := n.begin(ctx, wanted(owner)); !errors.Is(err, errAlive) {
		t.Errorf("two of one archive at a time: error %v", err)
	}
	if err := n.Release(t.Context(), owner.UID); !errors.Is(err, errAlive) {
		t.Errorf("released while it lives: error %v", err)
	}
	if err := n.services.leases.Delete(ctx, s.lease, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*life{s.life, run.life} {
		if err := l.writer.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Recover(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if after := n.state(t); len(after.Leases)+len(after.Ingests) != 0 {
		t.Errorf("left %v, %v", after.Leases, after.Ingests)
	}
}

// What others have done to a name since a publishing was killed stays, whether that is finished or undone.
func TestRecoverLeavesWhatOthersDid(t *testing.T) {
	one, b, other := version(t, "one"), build(t, twoImages()), named("other", "9")
	elsewhere := version(t, "elsewhere").Images[0].Target
	move := func(t *testing.T, n *node) { set(t, n, images.Image{Name: appName, Target: elsewhere}, "target") }
	share := func(b *builder.Built) func(*testing.T, *node) {
		return func(t *testing.T, n *node) {
			if _, err := n.Import(t.Context(), blobOf(t, b, false), wanted(other)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		name   string
		exists bool // before, with another target
		writes int  // the name is the first one
		do     func(*testing.T, *node)
		want   digest.Digest
		pinned bool
	}{
		{"a new name was moved", false, 1, move, elsewhere.Digest, false},
		{"an old name was moved", true, 1, move, elsewhere.Digest, true},
		{"a new name was shared", false, 1, share(b), b.Images[0].Target.Digest, true},
		{"an old name was shared", true, 1, share(b), b.Images[0].Target.Digest, true},
		{"a name was shared before it was written", true, 0, share(one), one.Images[0].Target.Digest, true},
	} {
		for _, wants := range [][]Owner{nil, {owner}} {
			n := newNode(t, "linux/amd64")
			if tc.exists {
				if _, err := n.Import(t.Context(), blobOf(t, one, false), wanted(owner)); err != nil {
					t.Fatal(err)
				}
			}
			killed(t, n, blobOf(t, b, false), wanted(owner), tc.writes)
			tc.do(t, n)
			if err := n.Recover(t.Context(), wants, nil); err != nil {
				t.Fatal(err)
			}
			img := n.image(t, appName)
			if img == nil || img.Target.Digest != tc.want || (img.Labels[labelPinned] != "") != tc.pinned {
				t.Errorf("%s, wanted %v: %v", tc.name, wants, img)
			}
		}
	}
}

// A publishing that was complete stands, although the kill came before its lease was dropped. Nobody needs that any more.
func TestRecoverLeavesWhatIsComplete(t *testing.T) {
	b := build(t, twoImages())
	for name, clear := range map[string]func(*node) error{
		"wanted":     func(n *node) error { return n.Recover(t.Context(), []Owner{owner}, nil) },
		"not wanted": func(n *node) error { return n.Recover(t.Context(), nil, nil) },
		"released":   func(n *node) error { return n.Release(t.Context(), owner.UID) },
	} {
		n := newNode(t, "linux/amd64")
		n.published(t, b, wanted(owner))
		before := n.state(t)
		if err := clear(n); err != nil {
			t.Fatal(err)
		}
		after := n.state(t)
		if !slices.Equal(before.Images, after.Images) {
			t.Errorf("%s: %v became %v", name, before.Images, after.Images)
		}
		if _, loss, whole, err := n.Imported(t.Context(), owner); !whole || loss != "" || err != nil {
			t.Errorf("%s: imported %v, error %v", name, whole, err)
		}
		if len(after.Leases)+len(after.Ingests) != 0 {
			t.Errorf("%s: left %v, %v", name, after.Leases, after.Ingests)
		}
	}
}

// published is a session that publishes an archive and then is killed.
func (n *node) published(t *testing.T, b *builder.Built, req Request) *session {
	t.Helper()
	s := n.bringing(t, blobOf(t, b, false), req)
	if err := s.publish(s.names); err != nil {
		t.Fatal(err)
	}
	if err := s.life.writer.Close(); err != nil {
		t.Fatal(err)
	}
	return s.session
}

// A kill in the midst of a note leaves a part of it, which is of no use to the next attempt.
func TestPartOfANoteIsDropped(t *testing.T) {
	n := newNode(t, "linux/amd64")
	s, ctx, err := n.begin(n.in(t.Context()), wanted(owner))
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.writer(ctx, "publishing", ocispec.Descriptor{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("something else")); err != nil {
		t.Fatal(err)
	}
	for _, w := range []content.Writer{w, s.life.writer} {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := n.Import(t.Context(), blobOf(t, build(t, twoImages()), false), wanted(owner)); err != nil {
			t.Error(err)
		}
	}
}

// hanging gives no answer to those who open an ingest.
type hanging struct{ content.Store }

func (hanging) Writer(ctx context.Context, _ ...content.WriterOpt) (content.Writer, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A containerd that hangs keeps nobody from giving up.
func TestHangingContainerdIsNotWaitedFor(t *testing.T) {
	n := newNode(t, "linux/amd64")
	n.services.content = hanging{n.services.content}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := n.Import(ctx, blobOf(t, version(t, "a"), false), wanted(owner))
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("still waiting")
	}
}

// cut is a writer whose connection has broken.
type cut struct{ content.Writer }

func (cut) Status() (content.Status, error) { return content.Status{}, io.EOF }

// restarted ends a session's sign of life like a containerd that is restarted.
func (s *session) restarted(t *testing.T) {
	t.Helper()
	if err := s.life.writer.Close(); err != nil {
		t.Fatal(err)
	}
	s.life.writer = cut{s.life.writer}
}

// A session goes on after containerd was restarted, but when somebody has taken it for dead it publishes nothing: what
// it had is gone.
func TestTakenForDead(t *testing.T) {
	b := version(t, "a")
	for _, dead := range []bool{false, true} {
		n := newNode(t, "linux/amd64")
		s := n.bringing(t, blobOf(t, b, false), wanted(Owner{}))
		s.restarted(t)
		if dead {
			if err := n.Recover(t.Context(), nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		err := s.publish(s.names[:1]) // one name has no note
		if (err != nil) != dead || (n.image(t, appName) == nil) != dead {
			t.Errorf("taken for dead %v: error %v, image %v", dead, err, n.image(t, appName))
		}
		if err := s.end(s.ctx, err); err != nil {
			t.Error(err)
		}
		if left := n.state(t); len(left.Leases)+len(left.Ingests) != 0 {
			t.Errorf("left %v, %v", left.Leases, left.Ingests)
		}
	}
}

// Another process that has adopted what a session had loses nothing when that ends.
func TestEndLeavesWhatWasAdopted(t *testing.T) {
	n := newNode(t, "linux/amd64")
	s, ctx, err := n.begin(n.in(t.Context()), wanted(owner))
	if err != nil {
		t.Fatal(err)
	}
	s.restarted(t)
	adopter, adopterCtx, err := n.begin(n.in(t.Context()), wanted(owner))
	if err != nil {
		t.Fatal(err)
	}
	before := n.state(t)
	if err := s.end(ctx, errInjected); !errors.Is(err, errAlive) {
		t.Errorf("error %v", err)
	}
	unchanged(t, before, n.state(t))
	if err := adopter.end(adopterCtx, nil); err != nil {
		t.Error(err)
	}
}
