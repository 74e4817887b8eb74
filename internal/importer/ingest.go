package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

// ingestWait bounds the wait for an ingest that a writer of this session's has not let go of yet, for example
// when the daemon has not noticed that the connection of a killed agent is gone.
const ingestWait = 10 * time.Second

// opener returns a blob's bytes from an offset to its end.
type opener func(offset int64) (io.ReadCloser, error)

// put writes a blob under its digest, from where an earlier attempt stopped, or only leases it when it is there.
func (s *session) put(ctx context.Context, d ocispec.Descriptor, open opener) error {
	ref := d.Digest.String()
	var passed []string // other importers' ingests of this blob that do not come on
	for {
		resumed := false
		err := s.withWriter(ctx, ref, d, func(w content.Writer) (err error) {
			resumed, err = s.fill(ctx, w, d, passed, open)
			return err
		})
		var elsewhere *elsewhereError
		switch {
		case err == nil:
			s.committed(d.Digest, d.Size)
			return nil
		case errors.Is(err, errPresent):
			s.present(d)
			return nil
		case errors.Is(err, errOvertaken):
			continue // it is there, but not below the lease yet
		case errors.As(err, &elsewhere):
			if err := s.follow(ctx, d, elsewhere.ref); err != nil {
				return err
			}
			passed = append(passed, elsewhere.ref)
		case errors.Is(err, archive.ErrDigestMismatch):
			// What is in the ingest will never match: a kill can leave bytes that were never synced, and every
			// retry would start from these.
			if abortErr := s.services.content.Abort(ctx, ref); abortErr != nil && !errdefs.IsNotFound(abortErr) {
				return fmt.Errorf("%w (abort ingest: %v)", err, abortErr) //nolint:errorlint // the first error is the reason
			}
			if resumed {
				continue
			}
			return err
		default:
			return err
		}
	}
}

var (
	// errPresent is a blob that is in the store, and now below the session's lease.
	errPresent = errors.New("present")
	// errOvertaken is a blob that somebody else committed first.
	errOvertaken = errors.New("overtaken")
)

// withWriter calls use with an open ingest. Its stream ends with its context only, not when it is closed.
func (s *session) withWriter(ctx context.Context, ref string, d ocispec.Descriptor, use func(content.Writer) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := s.writer(ctx, ref, d)
	if errdefs.IsAlreadyExists(err) {
		return errPresent
	}
	if err != nil {
		return runtimeError("open writer", err)
	}
	defer w.Close()
	return use(w)
}

// fill copies what an ingest lacks and commits it. It says whether the ingest had bytes before.
func (s *session) fill(ctx context.Context, w content.Writer, d ocispec.Descriptor, passed []string, open opener) (resumed bool, err error) {
	st, err := w.Status()
	if err != nil {
		return false, writerError("read ingest status", err)
	}
	if st.Offset > d.Size {
		return true, fmt.Errorf("ingest of %s is longer than the blob: %w", d.Digest, archive.ErrDigestMismatch)
	}
	if err := s.yield(ctx, d, st, passed); err != nil {
		return false, err
	}
	resumed = st.Offset > 0
	s.progress.done(st.Offset)
	if st.Offset < d.Size {
		r, err := open(st.Offset)
		if err != nil {
			return resumed, fmt.Errorf("open: %w", err)
		}
		err = s.copy(ctx, w, r, d.Size-st.Offset)
		if err == nil {
			err = ended(r)
		}
		if closeErr := r.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("close: %w", closeErr)
		}
		if err != nil {
			return resumed, err
		}
	}
	switch err := w.Commit(ctx, d.Size, d.Digest); {
	case err == nil:
		return resumed, nil
	case errdefs.IsAlreadyExists(err):
		s.progress.done(-d.Size)
		return resumed, errOvertaken
	case errdefs.IsFailedPrecondition(err):
		s.progress.done(-d.Size)
		return resumed, fmt.Errorf("the bytes have another digest: %w", archive.ErrDigestMismatch)
	default:
		return resumed, writerError("commit", err)
	}
}

// copy moves exactly n bytes; errors of reading are the source's, errors of writing containerd's. The source is
// read while containerd writes.
func (s *session) copy(ctx context.Context, w io.Writer, r io.Reader, n int64) error {
	s.writing.Add(1)
	defer s.writing.Add(-1)
	ahead := readAhead(io.LimitReader(r, n))
	defer ahead.stop()
	for {
		piece, err := ahead.next()
		if len(piece) > 0 {
			if _, err := w.Write(piece); err != nil {
				err = writerError("write", err)
				if ctx.Err() == nil { // else it fails because another has failed
					s.cancel(err) // who reads from a source that is silent is not to be waited for
				}
				return err
			}
			n -= int64(len(piece))
			s.progress.done(int64(len(piece)))
		}
		if err == nil {
			continue
		}
		if n == 0 {
			return nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = archive.ErrTruncated
		}
		return fmt.Errorf("read: %d bytes short: %w", n, err)
	}
}

// ended reads on after the last byte: a source that was changed meanwhile says so there, and its bytes must not be
// taken for a damaged archive's.
func ended(r io.Reader) error {
	n, err := r.Read(make([]byte, 1))
	switch {
	case n > 0:
		return fmt.Errorf("read: longer than its descriptor says: %w", archive.ErrInvalid)
	case err != nil && !errors.Is(err, io.EOF):
		return fmt.Errorf("read: %w", err)
	}
	return nil
}

// writer opens an ingest of this session's.
func (s *session) writer(ctx context.Context, ref string, d ocispec.Descriptor) (content.Writer, error) {
	return openWriter(ctx, s.services.content, ingestWait, content.WithRef(ref), content.WithDescriptor(d))
}

// openWriter opens an ingest, waiting a little while another writer holds it. content.OpenWriter would wait for ever,
// and also for a daemon that is down.
func openWriter(ctx context.Context, store content.Ingester, wait time.Duration, opts ...content.WriterOpt) (content.Writer, error) {
	deadline := time.Now().Add(wait)
	for pause := 2 * time.Millisecond; ; pause *= 2 {
		w, err := store.Writer(ctx, opts...)
		if !errdefs.IsUnavailable(err) || time.Now().After(deadline) {
			return w, err //nolint:wrapcheck // the caller looks at its kind
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err() //nolint:wrapcheck // as above
		case <-time.After(pause):
		}
	}
}

// committed notes that this session brought a blob.
func (s *session) committed(d digest.Digest, size int64) {
	s.mu.Lock()
	s.written[d] = size
	s.mu.Unlock()
	s.arrivals.arrived(d)
}

// present notes a blob that somebody else brought.
func (s *session) present(d ocispec.Descriptor) {
	s.progress.skipped(d.Size)
	s.arrivals.arrived(d.Digest)
}
