package store

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

const (
	// lockWait is how long an ingest may be locked before it is taken for another process'. The daemon notices within
	// milliseconds that a process is gone.
	lockWait = time.Second
	// reopenWait is how long an ingest may stay locked that was closed here.
	reopenWait = 10 * time.Second
)

// writer is an ingest below the session's lease. When that is replaced, the ingest is closed, and opened again at its offset.
type writer struct {
	content.Writer
	session *Session
	lease   *lease
	base    context.Context // that it was opened with
	ref     string
	desc    ocispec.Descriptor
	offset  int64
	close   func()
}

// open opens an ingest of the session's, waiting a little while another writer has it: errLocked. The error is
// errdefs.ErrAlreadyExists for a blob that is in the store. content.OpenWriter would wait for ever, and also for a daemon that is
// down.
func (s *Session) open(ctx context.Context, ref string, d ocispec.Descriptor) (*writer, error) {
	w := &writer{session: s, base: ctx, ref: ref, desc: d}
	if err := w.open(lockWait); err != nil { //nolint:contextcheck // w has it
		return nil, err
	}
	s.mu.Lock()
	s.refs[ref] = true
	s.mu.Unlock()
	return w, nil
}

func (w *writer) open(wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for pause := 2 * time.Millisecond; ; pause *= 2 {
		err := w.openOnce()
		switch locked := errdefs.IsUnavailable(err) && strings.Contains(err.Error(), "locked"); {
		case !locked:
			return daemon.Error("open writer", err)
		case time.Now().After(deadline):
			return fmt.Errorf("%w: %w", errLocked, err)
		}
		select {
		case <-w.base.Done():
			return w.base.Err() //nolint:wrapcheck // the caller's own
		case <-time.After(pause):
		}
	}
}

// openOnce opens the ingest below the present lease.
func (w *writer) openOnce() error {
	ctx, cancel := context.WithCancel(w.base) // a writer's stream ends with its context, not when it is closed
	l, err := w.session.hold(ctx)
	if err != nil {
		cancel()
		return err
	}
	end := func() { cancel(); w.session.release(ctx, l) }
	opened, err := w.session.store.content.Writer(leases.WithLease(ctx, l.ID), content.WithRef(w.ref), content.WithDescriptor(w.desc))
	if err != nil {
		end()
		return err //nolint:wrapcheck // open says what failed
	}
	w.Writer, w.lease, w.close = opened, l, end
	st, err := opened.Status()
	if err != nil {
		w.Close()                                            //nolint:gosec // nothing was written
		return daemon.WriterError("read ingest status", err) // open adds no more than what was being done
	}
	w.offset = st.Offset
	return nil
}

// Write continues the ingest, below the present lease.
func (w *writer) Write(p []byte) (int, error) {
	if !w.session.current(w.lease) {
		offset := w.offset
		w.Close() //nolint:gosec // what was acknowledged is there
		if err := w.open(reopenWait); err != nil {
			return 0, err
		}
		if w.offset != offset {
			return 0, fmt.Errorf("the ingest has %d bytes after it was opened again, not %d: %w", w.offset, offset, daemon.ErrUnavailable)
		}
	}
	n, err := w.Writer.Write(p)
	w.offset += int64(n)
	return n, err
}

// Commit ends the ingest when the blob is in the store.
func (w *writer) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(leases.WithLease(ctx, w.lease.ID), size, expected, opts...)
	if err == nil || errdefs.IsAlreadyExists(err) {
		w.session.mu.Lock()
		delete(w.session.refs, w.ref)
		w.session.mu.Unlock()
	}
	return err //nolint:wrapcheck // the caller checks its kind
}

// Close ends the stream. It may be called again.
func (w *writer) Close() error {
	if w.close == nil {
		return nil
	}
	err := w.Writer.Close()
	w.close()
	w.close = nil
	return err
}

// abort removes an ingest.
func (s *Store) abort(ctx context.Context, ref string) error {
	return cleanUp(ctx, func(ctx context.Context) error {
		if err := s.content.Abort(ctx, ref); !errdefs.IsNotFound(err) {
			return daemon.Error("abort ingest "+ref, err)
		}
		return nil
	})
}

// Partial is how many bytes of blobs earlier attempts of the owner have left in ingests.
func (s *Session) Partial(ctx context.Context) (map[digest.Digest]int64, error) {
	prefix := ingestPrefix(s.owner.UID)
	list, err := s.store.content.ListStatuses(ctx, fmt.Sprintf("ref~=%q", "^"+regexp.QuoteMeta(prefix)))
	partial := map[digest.Digest]int64{}
	for _, st := range list {
		partial[digest.Digest(strings.TrimPrefix(st.Ref, prefix))] = st.Offset
	}
	return partial, daemon.Error("list ingests", err)
}

// Content is the content store as the session may use it: what is written lies below its lease, with ingest references of
// its own.
//
// It adds labels that hold content, and replaces none: containerd numbers the children of an index anew for each platform,
// so that the import of one would let go of what another import of the same index holds. Its callers give the labels that they set,
// and nothing else.
func (s *Session) Content() content.Store { return sessionContent{s.store.content, s} }

type sessionContent struct {
	content.Store
	session *Session
}

// labelGCContent and a suffix make the labels by which a blob keeps others from being collected.
const labelGCContent = "containerd.io/gc.ref.content."

func (c sessionContent) Update(ctx context.Context, info content.Info, _ ...string) (content.Info, error) {
	now, err := c.Info(ctx, info.Digest)
	if err != nil {
		return now, err //nolint:wrapcheck // a transparent wrapper
	}
	labels, paths := map[string]string{}, []string{}
	for k, v := range info.Labels {
		if held := now.Labels[k]; strings.HasPrefix(k, labelGCContent) && held != "" && held != v {
			k += "." + digest.Digest(v).Encoded()[:12]
		}
		labels[k] = v
		paths = append(paths, "labels."+k)
	}
	info.Labels = labels
	return c.Store.Update(ctx, info, paths...) //nolint:wrapcheck // as above
}

func (c sessionContent) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	w, err := c.session.open(ctx, c.session.privateRef(c.session.ref(o.Ref)), o.Desc)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Snapshotter is a snapshotter whose new snapshots lie below the session's lease.
func (s *Session) Snapshotter(sn snapshots.Snapshotter) snapshots.Snapshotter {
	return sessionSnapshots{sn, s}
}

type sessionSnapshots struct {
	snapshots.Snapshotter
	session *Session
}

func (s sessionSnapshots) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) (mounts []mount.Mount, err error) {
	err = s.session.Do(ctx, func(ctx context.Context) error {
		mounts, err = s.Snapshotter.Prepare(ctx, key, parent, opts...)
		return err //nolint:wrapcheck // a transparent wrapper
	})
	return mounts, err //nolint:wrapcheck // as above
}

func (s sessionSnapshots) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.session.Do(ctx, func(ctx context.Context) error { return s.Snapshotter.Commit(ctx, name, key, opts...) })
}

// Remove lets go of a snapshot below the lease that holds it.
func (s sessionSnapshots) Remove(ctx context.Context, key string) error {
	return s.session.Do(ctx, func(ctx context.Context) error { return s.Snapshotter.Remove(ctx, key) })
}
