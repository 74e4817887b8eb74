package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/test/inprocess"
)

func TestMain(m *testing.M) {
	_ = log.SetLevel("error") // containerd's store warns of file systems without fs-verity
	goleak.VerifyTestMain(m)
}

// The tests run in bubbles of synctest, in which a day takes no time.

// node is one containerd. Each store on it is another process.
type node struct{ *inprocess.Containerd }

func newNode(t *testing.T) node {
	t.Helper()
	return node{inprocess.New(t)}
}

func (n node) process() *Store { return New(n.Content, n.Leases, 0) }

func inNamespace(t *testing.T) context.Context {
	t.Helper()
	return namespaces.WithNamespace(t.Context(), "k8s.io")
}

func open(t *testing.T, s *Store, o Owner) *Session {
	t.Helper()
	session, err := s.Open(inNamespace(t), o, noHooks)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// left is what is in containerd, after its garbage was collected.
func (n node) left(t *testing.T) (leaseIDs, ingests, blobs []string) {
	t.Helper()
	n.Collect(t)
	ctx := inNamespace(t)
	list, err := n.Leases.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		leaseIDs = append(leaseIDs, l.ID)
	}
	statuses, err := n.Content.ListStatuses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range statuses {
		ingests = append(ingests, st.Ref)
	}
	err = n.Content.Walk(ctx, func(i content.Info) error {
		blobs = append(blobs, i.Digest.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(leaseIDs)
	return leaseIDs, ingests, blobs
}

func (n node) nothingLeft(t *testing.T) {
	t.Helper()
	if leaseIDs, ingests, blobs := n.left(t); len(leaseIDs)+len(ingests)+len(blobs) != 0 {
		t.Errorf("left: leases %q, ingests %q, blobs %q", leaseIDs, ingests, blobs)
	}
	for _, pattern := range []string{"ingest/*", "blobs/*/*"} {
		if files, err := filepath.Glob(filepath.Join(n.Root, pattern)); err != nil || len(files) != 0 {
			t.Errorf("left: files %q, %v", files, err)
		}
	}
}

func (n node) has(t *testing.T, d ocispec.Descriptor) bool {
	t.Helper()
	got, err := content.ReadBlob(inNamespace(t), n.Content, d)
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil && digest.FromBytes(got) == d.Digest
}

var noHooks = Hooks{
	Done: func(int64) {}, Skipped: func(int64) {}, Ready: func(digest.Digest) {}, Writing: new(atomic.Int32), Failed: func(error) {},
}

// pieceSize is what a feed gives at once, in bytes.
const pieceSize = 64 << 10

// blob has that many pieces.
func blob(name string, pieces int) (ocispec.Descriptor, []byte) {
	data := bytes.Repeat([]byte(name+"\n"), pieces*pieceSize/(len(name)+1)+1)[:pieces*pieceSize]
	return ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, data
}

// feed is a blob's source. Before each piece it calls before with how many bytes it has given.
type feed struct {
	data   []byte
	before func(given int64) error
	stream bool    // it can be opened once
	opened []int64 // the offsets
	read   int64
}

func (f *feed) open(offset int64) (io.ReadCloser, error) {
	f.opened = append(f.opened, offset)
	if f.stream && len(f.opened) > 1 {
		return nil, errors.New("a stream cannot be read again")
	}
	return io.NopCloser(&feedReader{f, offset}), nil
}

type feedReader struct {
	*feed
	at int64
}

func (r *feedReader) Read(p []byte) (int, error) {
	if r.at == int64(len(r.data)) {
		return 0, io.EOF
	}
	if r.before != nil {
		if err := r.before(r.at); err != nil {
			return 0, err
		}
	}
	n := copy(p[:min(len(p), pieceSize)], r.data[r.at:])
	r.at += int64(n)
	r.read += int64(n)
	return n, nil
}

var errInjected = errors.New("injected")

// half fails in the middle of a blob.
func half(d ocispec.Descriptor) func(int64) error {
	return func(given int64) error {
		if given >= d.Size/2 {
			return errInjected
		}
		return nil
	}
}

var archiveA = Owner{UID: "a", Spec: "1"}

// A blob that takes longer than a lease can live is moved below one lease after the other, in one go; what was there before
// it, and what others have written meanwhile, is held by each.
func TestLeaseIsHandedOverInMidBlob(t *testing.T) {
	for name, stream := range map[string]bool{"random access": false, "a stream": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				session := open(t, n.process(), archiveA)
				early, earlyData := blob("early", 1)
				during, duringData := blob("during", 1)
				late, lateData := blob("late", 60) // an hour each: two and a half lives of a lease
				ctx := inNamespace(t)
				if err := session.EnsureBlob(ctx, early, (&feed{data: earlyData}).open); err != nil {
					t.Fatal(err)
				}
				src := &feed{data: lateData, stream: stream, before: func(given int64) error {
					time.Sleep(time.Hour)
					leaseIDs, _, _ := n.left(t)
					if len(leaseIDs) != 1 {
						t.Errorf("leases %q", leaseIDs)
					}
					if given != 20*pieceSize {
						return nil
					}
					return session.EnsureBlob(ctx, during, (&feed{data: duringData}).open)
				}}
				if err := session.EnsureBlob(ctx, late, src.open); err != nil {
					t.Fatal(err)
				}
				for _, d := range []ocispec.Descriptor{early, during, late} {
					if leaseIDs, _, _ := n.left(t); !n.has(t, d) || len(leaseIDs) != 1 {
						t.Errorf("%s is there: %v; leases %q", d.Digest, n.has(t, d), leaseIDs)
					}
				}
				if src.read != late.Size || len(src.opened) != 1 {
					t.Errorf("read %d bytes of %d, opened at %d", src.read, late.Size, src.opened)
				}
				if err := session.Close(ctx, false); err != nil {
					t.Error(err)
				}
				n.nothingLeft(t)
			})
		})
	}
}

// A blob that another process has brought, or is bringing, when its ingest is opened again below the next lease is no failure.
func TestLeaseIsHandedOverWhileAnotherMovesTheBlob(t *testing.T) {
	for name, commits := range map[string]bool{"committed": true, "locked": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				ctx := inNamespace(t)
				d, data := blob("b", 20) // an hour each
				var sum atomic.Int64
				hooks := noHooks
				add := func(n int64) { sum.Add(n) }
				hooks.Done, hooks.Skipped = add, add
				hooks.Failed = func(err error) { t.Errorf("failed: %v", err) }
				session, err := n.process().Open(ctx, archiveA, hooks)
				if err != nil {
					t.Fatal(err)
				}
				another := Owner{UID: "another"}
				src := &feed{data: data, before: func(given int64) error {
					time.Sleep(time.Hour)
					if commits && given == 4*pieceSize {
						return open(t, n.process(), another).EnsureBlob(ctx, d, (&feed{data: data}).open)
					}
					return nil
				}}
				var locked content.Writer
				if !commits {
					n.Content = lockOnReopen{n.Content, t, &locked}
					session.store.content = n.Content
				}
				if err := session.EnsureBlob(ctx, d, src.open); err != nil {
					t.Error(err)
				}
				if locked != nil {
					locked.Close()
				}
				if sum.Load() != d.Size {
					t.Errorf("progress says %d bytes of %d", sum.Load(), d.Size)
				}
				if !n.has(t, d) {
					t.Error("the blob is not there")
				}
			})
		})
	}
}

// lockOnReopen has somebody else open an ingest that was closed, once.
type lockOnReopen struct {
	content.Store
	t      *testing.T
	locked *content.Writer
}

func (l lockOnReopen) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if st, err := l.Status(ctx, o.Ref); err == nil && st.Offset > 0 && *l.locked == nil {
		other, err := l.Store.Writer(inNamespace(l.t), opts...)
		if err != nil {
			return nil, err
		}
		*l.locked = other
	}
	return l.Store.Writer(ctx, opts...)
}

// What is done below a lease by a call that began before it was handed over, and ends after that, is held too.
func TestLongCallIsHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		session := open(t, n.process(), archiveA)
		ctx := inNamespace(t)
		d, data := blob("b", 1)
		other, otherData := blob("other", 1)
		err := session.Do(ctx, func(held context.Context) error {
			time.Sleep(DefaultHandOver + time.Minute)
			if err := session.EnsureBlob(ctx, other, (&feed{data: otherData}).open); err != nil {
				return err
			}
			return content.WriteBlob(held, n.Content, "late", bytes.NewReader(data), d)
		})
		if err != nil {
			t.Fatal(err)
		}
		if leaseIDs, _, _ := n.left(t); len(leaseIDs) != 1 || !n.has(t, d) || !n.has(t, other) {
			t.Errorf("leases %q, the blob is there: %v", leaseIDs, n.has(t, d))
		}
	})
}

// A session whose lease is gone in mid-blob says so, whoever has taken it. The next one ends.
func TestLeaseLost(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, n node){
		"deleted": func(t *testing.T, n node) {
			list, err := n.Leases.List(inNamespace(t))
			if err != nil {
				t.Error(err)
			}
			for _, l := range list {
				if err := n.Leases.Delete(inNamespace(t), l); err != nil {
					t.Error(err)
				}
			}
		},
		"expired by a step of the clock": func(t *testing.T, n node) {
			time.Sleep(leaseExpiry + time.Hour)
			n.Collect(t)
		},
	} {
		for _, at := range []int64{1, 5, 9} { // pieces of 10
			t.Run(fmt.Sprintf("%s after %d pieces", name, at), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := newNode(t)
					store := n.process()
					d, data := blob("b", 10)
					session := open(t, store, archiveA)
					early, earlyData := blob("early", 1) // which goes with the lease
					if err := session.EnsureBlob(inNamespace(t), early, (&feed{data: earlyData}).open); err != nil {
						t.Fatal(err)
					}
					src := &feed{data: data, before: func(given int64) error {
						if given == at*pieceSize {
							lose(t, n)
						}
						return nil
					}}
					err := session.EnsureBlob(inNamespace(t), d, src.open)
					if lost := session.Held(inNamespace(t)); err == nil || !errors.Is(lost, ErrLeaseLost) {
						t.Errorf("error %v, held: %v", err, lost)
					}
					if err := session.Close(inNamespace(t), true); err != nil {
						t.Error(err)
					}
					session = open(t, store, archiveA)
					if err := session.EnsureBlob(inNamespace(t), d, (&feed{data: data}).open); err != nil {
						t.Errorf("the next session: %v", err)
					}
					if err := session.Held(inNamespace(t)); err != nil {
						t.Error(err)
					}
					if err := session.Close(inNamespace(t), false); err != nil {
						t.Error(err)
					}
					n.nothingLeft(t)
				})
			})
		}
	}
}

// A process goes on where a killed one was: what that has committed is not moved again, and of a blob in the middle the rest.
// The killed one's lease stays while it is young, since nobody knows that it was killed, and goes then.
func TestKilledProcessIsSucceeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		whole, wholeData := blob("whole", 4)
		partial, partialData := blob("partial", 8)
		killed := open(t, n.process(), archiveA)
		if err := killed.EnsureBlob(inNamespace(t), whole, (&feed{data: wholeData}).open); err != nil {
			t.Fatal(err)
		}
		src := &feed{data: partialData, before: half(partial)}
		if err := killed.EnsureBlob(inNamespace(t), partial, src.open); !errors.Is(err, errInjected) {
			t.Fatal(err)
		}
		first, _, _ := n.left(t)

		session := open(t, n.process(), archiveA)
		if got, err := session.Partial(inNamespace(t)); err != nil || got[partial.Digest] != partial.Size/2 {
			t.Errorf("partial %v, %v", got, err)
		}
		again, rest := &feed{data: wholeData}, &feed{data: partialData, before: half(partial)}
		if err := session.EnsureBlob(inNamespace(t), whole, again.open); err != nil || again.opened != nil {
			t.Errorf("a whole blob was opened at %d, %v", again.opened, err)
		}
		if err := session.EnsureBlob(inNamespace(t), partial, rest.open); !errors.Is(err, errInjected) || !slices.Equal(rest.opened, []int64{partial.Size / 2}) {
			t.Errorf("a partial blob was opened at %d, %v", rest.opened, err)
		}
		second, _, _ := n.left(t)
		if len(second) != 2 || !slices.Contains(second, first[0]) {
			t.Errorf("leases %q, then %q", first, second)
		}

		time.Sleep(DefaultHandOver + time.Minute)
		session = open(t, n.process(), archiveA)
		if third, _, _ := n.left(t); len(third) != 1 || slices.Contains(second, third[0]) || !n.has(t, whole) {
			t.Errorf("leases %q, then %q", second, third)
		}
		if err := session.Close(inNamespace(t), false); err != nil {
			t.Error(err)
		}
		n.nothingLeft(t)
	})
}

// failingLeases cannot say what the second lease holds that is asked about.
type failingLeases struct {
	leases.Manager
	asked *int
}

func (f failingLeases) ListResources(ctx context.Context, l leases.Lease) ([]leases.Resource, error) {
	if *f.asked++; *f.asked == 2 {
		return nil, errInjected
	}
	return f.Manager.ListResources(ctx, l)
}

// A session that cannot begin loses nothing of what earlier ones have kept, in whatever order it looks at their leases.
func TestFailedOpenKeepsAll(t *testing.T) {
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t)
			ctx := inNamespace(t)
			open(t, n.process(), archiveA) // another process
			store := n.process()
			d, data := blob("b", 2)
			session := open(t, store, archiveA)
			if err := errors.Join(session.EnsureBlob(ctx, d, (&feed{data: data}).open), session.Close(ctx, true)); err != nil {
				t.Fatal(err)
			}
			store.leases = failingLeases{n.Leases, new(int)}
			if _, err := store.Open(ctx, archiveA, noHooks); !errors.Is(err, errInjected) {
				t.Errorf("error %v", err)
			}
			n.Collect(t)
			session = open(t, store, archiveA)
			if leaseIDs, _, _ := n.left(t); !n.has(t, d) || len(leaseIDs) != 2 {
				t.Errorf("the blob is there: %v; leases %q", n.has(t, d), leaseIDs)
			}
			if err := session.Close(ctx, false); err != nil {
				t.Error(err)
			}
		})
	}
}

// What was moved for another spec is of no use to a session, and goes with its lease.
func TestAnotherSpecIsNotAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		store := n.process()
		d, data := blob("b", 2)
		former := open(t, store, archiveA)
		if err := former.EnsureBlob(inNamespace(t), d, (&feed{data: data}).open); err != nil {
			t.Fatal(err)
		}
		if err := former.Close(inNamespace(t), true); err != nil {
			t.Fatal(err)
		}
		open(t, store, Owner{UID: archiveA.UID, Spec: "2"})
		if leaseIDs, _, blobs := n.left(t); len(leaseIDs) != 1 || len(blobs) != 0 {
			t.Errorf("leases %q, blobs %q", leaseIDs, blobs)
		}
	})
}

// Two sessions of one owner in one process do not end each other, of the same spec or another, also when an earlier one has kept
// its lease.
func TestTwoSessionsOfOneOwner(t *testing.T) {
	for _, spec := range []string{archiveA.Spec, "another"} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t)
			store, ctx := n.process(), inNamespace(t)
			if err := open(t, store, archiveA).Close(ctx, true); err != nil {
				t.Fatal(err)
			}
			d, data := blob("b", 2)
			first := open(t, store, archiveA)
			if err := first.EnsureBlob(ctx, d, (&feed{data: data}).open); err != nil {
				t.Fatal(err)
			}
			second := open(t, store, Owner{UID: archiveA.UID, Spec: spec})
			again := &feed{data: data}
			if err := second.EnsureBlob(ctx, d, again.open); err != nil || again.opened != nil {
				t.Errorf("opened at %d, %v", again.opened, err)
			}
			for _, keep := range []bool{true, false} { // and the next one takes the kept lease
				if err := second.Close(ctx, keep); err != nil {
					t.Error(err)
				}
				if err := first.Held(ctx); err != nil || !n.has(t, d) {
					t.Errorf("after the other's end with keep %v: %v, the blob is there: %v", keep, err, n.has(t, d))
				}
				if keep {
					second = open(t, store, Owner{UID: archiveA.UID, Spec: spec})
				}
			}
			if leaseIDs, _, _ := n.left(t); len(leaseIDs) != 1 {
				t.Errorf("leases %q", leaseIDs)
			}
			if err := first.Close(ctx, false); err != nil {
				t.Error(err)
			}
			n.nothingLeft(t)
		})
	}
}

// Two processes with one owner, in any order of their steps, do each other no harm: both have all blobs to their end, and
// after it only what expires is left.
func TestTwoProcessesOfOneOwner(t *testing.T) {
	names := []string{"a", "b", "c"}
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t)
			work := func(k uint64) error {
				random := rand.New(rand.NewPCG(seed, k))
				pause := func(most time.Duration) { time.Sleep(time.Duration(random.Int64N(int64(most)))) }
				pause(time.Second)
				ctx := inNamespace(t)
				session, err := n.process().Open(ctx, archiveA, noHooks)
				if err != nil {
					return fmt.Errorf("open: %w", err)
				}
				for _, name := range names {
					d, data := blob(name, 4)
					src := &feed{data: data, before: func(int64) error {
						pause(2 * time.Second)
						n.Collect(t)
						return nil
					}}
					if err := session.EnsureBlob(ctx, d, src.open); err != nil {
						return fmt.Errorf("blob %s: %w", name, err)
					}
				}
				if err := session.Held(ctx); err != nil {
					return err
				}
				n.Collect(t)
				for _, name := range names {
					if d, _ := blob(name, 4); !n.has(t, d) {
						return fmt.Errorf("blob %s is gone", name)
					}
				}
				pause(time.Second)
				return session.Close(ctx, random.IntN(2) == 0)
			}
			done := make(chan error)
			for k := range uint64(2) {
				go func() { done <- work(k) }()
			}
			for range 2 {
				if err := <-done; err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
			}
			time.Sleep(leaseExpiry + time.Minute)
			n.nothingLeft(t)
		})
	}
}

// A blob that several sessions of a process need is read once.
func TestOneFlightForEachDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		store := n.process()
		d, data := blob("b", 20)
		var read atomic.Int64
		done := make(chan error)
		for _, uid := range []string{"a", "b", "c"} {
			session := open(t, store, Owner{UID: uid})
			src := &feed{data: data, before: func(int64) error { time.Sleep(stallTime / 2); return nil }}
			go func() {
				err := session.EnsureBlob(inNamespace(t), d, src.open)
				read.Add(src.read)
				done <- errors.Join(err, session.Close(inNamespace(t), true))
			}()
			defer func() {
				if err := session.Close(inNamespace(t), false); err != nil {
					t.Error(err)
				}
			}()
		}
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if read.Load() != d.Size {
			t.Errorf("read %d bytes of %d", read.Load(), d.Size)
		}
		// Each holds it.
		for _, l := range n.list(t) {
			resources, err := n.Leases.ListResources(inNamespace(t), l)
			if err != nil || !slices.ContainsFunc(resources, func(r leases.Resource) bool { return r.ID == d.Digest.String() }) {
				t.Errorf("lease %s holds %v, %v", l.ID, resources, err)
			}
		}
	})
}

func (n node) list(t *testing.T) []leases.Lease {
	t.Helper()
	list, err := n.Leases.List(inNamespace(t))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Nobody waits for a flight that comes no further, also not for one of the same owner.
func TestStalledFlightIsNotWaitedFor(t *testing.T) {
	for _, uid := range []string{"a", "b"} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t)
			d, data := blob("b", 4)
			first, other := n.process(), Owner{UID: uid}
			stalled, cancel := context.WithCancel(inNamespace(t))
			silent := open(t, first, Owner{UID: "a"})
			ended := make(chan error)
			go func() {
				src := &feed{data: data, before: func(given int64) error {
					if given < d.Size/2 {
						return nil
					}
					<-stalled.Done()
					return stalled.Err()
				}}
				ended <- silent.EnsureBlob(stalled, d, src.open)
			}()
			synctest.Wait()
			session := silent
			if uid != "a" {
				session = open(t, first, other)
			}
			start := time.Now()
			if err := session.EnsureBlob(inNamespace(t), d, (&feed{data: data}).open); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > 3*stallTime {
				t.Errorf("took %s", took)
			}
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the silent one: %v", err)
			}
			for _, s := range []*Session{session, silent} {
				if err := s.Close(inNamespace(t), false); err != nil {
					t.Error(err)
				}
			}
			n.nothingLeft(t)
		})
	}
}

// A kill can leave bytes in an ingest that are not the blob's, or too many. They are dropped, and the blob is read anew.
func TestPoisonedIngestIsDropped(t *testing.T) {
	d, data := blob("b", 4)
	for name, poison := range map[string][]byte{
		"other bytes":  bytes.Repeat([]byte("poison"), pieceSize/6),
		"as many":      bytes.Repeat([]byte("p"), len(data)),
		"longer":       append(slices.Clone(data), "more"...),
		"a good start": data[:pieceSize],
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t)
			session := open(t, n.process(), archiveA)
			w, err := session.open(inNamespace(t), session.ref(d.Digest.String()), ocispec.Descriptor{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(poison); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			src := &feed{data: data}
			if err := session.EnsureBlob(inNamespace(t), d, src.open); err != nil || !n.has(t, d) {
				t.Errorf("%s: error %v, opened at %d", name, err, src.opened)
			}
			if good := name == "a good start"; good != (src.opened[0] > 0 && len(src.opened) == 1) {
				t.Errorf("%s: opened at %d", name, src.opened)
			}
		})
	}
}

// Wrong bytes of a source are refused, and not kept for the next attempt. A cut source's are kept.
func TestFaultsOfSources(t *testing.T) {
	d, data := blob("b", 4)
	wrong := slices.Clone(data)
	wrong[len(wrong)-1]++
	for name, tc := range map[string]struct {
		src  *feed
		want error
		kept bool
	}{
		"wrong bytes": {&feed{data: wrong}, archive.ErrDigestMismatch, false},
		"cut":         {&feed{data: data[:pieceSize]}, archive.ErrTruncated, true},
		"too long":    {&feed{data: append(slices.Clone(data), 'x')}, archive.ErrInvalid, true},
		"fails":       {&feed{data: data, before: half(d)}, errInjected, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t)
			session := open(t, n.process(), archiveA)
			if err := session.EnsureBlob(inNamespace(t), d, tc.src.open); !errors.Is(err, tc.want) {
				t.Errorf("%s: error %v", name, err)
			}
			if _, ingests, _ := n.left(t); (len(ingests) > 0) != tc.kept {
				t.Errorf("%s: ingests %q", name, ingests)
			}
		})
	}
}

// Close leaves nothing of whatever a session has done, nor of what it has taken over, also when its context has ended.
func TestCloseLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		store := n.process()
		done, doneData := blob("done", 2)
		partial, partialData := blob("partial", 4)
		for _, keep := range []bool{true, false} {
			session := open(t, store, archiveA)
			ctx, cancel := context.WithCancel(inNamespace(t))
			if err := session.EnsureBlob(ctx, done, (&feed{data: doneData}).open); err != nil {
				t.Fatal(err)
			}
			if _, err := session.WriteUnnamed(ctx, 7, bytes.NewReader([]byte("unnamed"))); err != nil {
				t.Fatal(err)
			}
			if _, err := session.WriteUnnamed(ctx, 7, bytes.NewReader([]byte("cut"))); !errors.Is(err, archive.ErrTruncated) {
				t.Fatal(err)
			}
			if keep {
				if err := session.EnsureBlob(ctx, partial, (&feed{data: partialData, before: half(partial)}).open); !errors.Is(err, errInjected) {
					t.Fatal(err)
				}
			}
			w, err := session.Content().Writer(ctx, content.WithRef("config"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte("some")); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			cancel()
			if err := session.Close(ctx, keep); err != nil {
				t.Fatal(err)
			}
			if leaseIDs, ingests, blobs := n.left(t); keep && (len(leaseIDs) != 1 || len(ingests) == 0 || len(blobs) != 2) {
				t.Errorf("kept leases %q, ingests %q, blobs %q", leaseIDs, ingests, blobs)
			}
		}
		n.nothingLeft(t)
	})
}

// Attempts that fail in the middle of a member without a digest do not fill the disk: none can go on with what another one has of
// it, whether it has ended or was killed.
func TestUnnamedIngestsDoNotPileUp(t *testing.T) {
	for name, killed := range map[string]bool{"ended": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				store := n.process()
				for range 3 {
					session := open(t, store, archiveA)
					_, err := session.WriteUnnamed(inNamespace(t), 100, bytes.NewReader([]byte("cut")))
					if !errors.Is(err, archive.ErrTruncated) {
						t.Fatal(err)
					}
					if !killed {
						if err := session.Close(inNamespace(t), true); err != nil {
							t.Fatal(err)
						}
						continue
					}
					time.Sleep(DefaultHandOver + time.Minute)
					store = n.process()
					open(t, store, archiveA)
				}
				if _, ingests, _ := n.left(t); len(ingests) != 0 {
					t.Errorf("ingests %q", ingests)
				}
			})
		})
	}
}

// Close also removes an ingest that the lease of a killed process still holds, if the session has gone on with it: it may have
// filled the disk.
func TestCloseRemovesAdoptedIngests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		d, data := blob("b", 4)
		for range 2 {
			session := open(t, n.process(), archiveA)
			if err := session.EnsureBlob(inNamespace(t), d, (&feed{data: data, before: half(d)}).open); !errors.Is(err, errInjected) {
				t.Fatal(err)
			}
			if leaseIDs, ingests, _ := n.left(t); len(leaseIDs) == 1 {
				continue // this process is killed
			} else if len(ingests) != 1 {
				t.Errorf("ingests %q", ingests)
			}
			if err := session.Close(inNamespace(t), false); err != nil {
				t.Error(err)
			}
		}
		if leaseIDs, ingests, _ := n.left(t); len(leaseIDs) != 1 || len(ingests) != 0 {
			t.Errorf("leases %q, ingests %q", leaseIDs, ingests)
		}
	})
}

// Release ends what is kept for owners that nobody wants, and nothing of others.
func TestRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		store := n.process()
		foreign, err := n.Leases.Create(inNamespace(t), leases.WithID("foreign"))
		if err != nil {
			t.Fatal(err)
		}
		for _, uid := range []string{"a", "b"} {
			d, data := blob(uid, 2)
			session := open(t, store, Owner{UID: uid})
			if err := session.EnsureBlob(inNamespace(t), d, (&feed{data: data}).open); err != nil {
				t.Fatal(err)
			}
			if err := session.Close(inNamespace(t), true); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.process().Release(inNamespace(t), func(uid string) bool { return uid == "a" }); err != nil {
			t.Fatal(err)
		}
		a, _ := blob("a", 2)
		b, _ := blob("b", 2)
		if leaseIDs, _, _ := n.left(t); len(leaseIDs) != 2 || !slices.Contains(leaseIDs, foreign.ID) || n.has(t, a) || !n.has(t, b) {
			t.Errorf("leases %q, a %v, b %v", leaseIDs, n.has(t, a), n.has(t, b))
		}
	})
}
