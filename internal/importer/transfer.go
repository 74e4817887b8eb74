package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/source"
)

const (
	// copyBuffer is what is read from the source at once. containerd sends larger writes in messages of its own.
	copyBuffer = 1 << 20
	// ingestWait bounds the wait for an ingest that a writer of this session's has not let go of yet, for example
	// when the daemon has not noticed that the connection of a killed agent is gone.
	ingestWait = 10 * time.Second
)

// opener returns a blob's bytes from an offset to its end.
type opener func(offset int64) (io.ReadCloser, error)

// transfer brings every blob of the plan below the session's lease, one after the other. Blobs that are present
// are neither read nor written.
func (s *session) transfer(ctx context.Context, src source.Blob, p *Plan) error {
	s.progress.total(p.Bytes.Total)
	s.progress.phase(PhaseTransferring)
	for _, b := range p.Blobs {
		err := s.put(ctx, b.Descriptor, func(offset int64) (io.ReadCloser, error) {
			switch {
			case b.extent.Data != nil:
				return io.NopCloser(bytes.NewReader(b.extent.Data[offset:])), nil
			case b.extent.Member == "": // planned as present
				return nil, fmt.Errorf("the blob has left the store meanwhile: %w", ErrRuntimeUnavailable)
			}
			return src.Section(ctx, b.extent.Offset+offset, b.extent.Size-offset)
		})
		if err != nil && b.extent.Member != "" {
			err = fmt.Errorf("member %q: %w", b.extent.Member, err)
		}
		if err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
	}
	return nil
}

// put writes a blob under its digest, from where an earlier attempt stopped, or only leases it when it is there.
func (s *session) put(ctx context.Context, d ocispec.Descriptor, open opener) error {
	ref := d.Digest.String()
	for {
		resumed := false
		err := s.withWriter(ctx, ref, d, func(w content.Writer) (err error) {
			resumed, err = s.fill(ctx, w, d, open)
			return err
		})
		switch {
		case err == nil:
			s.written[d.Digest] = d.Size
			return nil
		case errors.Is(err, errPresent):
			s.progress.skipped(d.Size)
			return nil
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

// errPresent is a blob that is in the store, and now below the session's lease.
var errPresent = errors.New("present")

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
func (s *session) fill(ctx context.Context, w content.Writer, d ocispec.Descriptor, open opener) (resumed bool, err error) {
	st, err := w.Status()
	if err != nil {
		return false, writerError("read ingest status", err)
	}
	if st.Offset > d.Size {
		return true, fmt.Errorf("ingest of %s is longer than the blob: %w", d.Digest, archive.ErrDigestMismatch)
	}
	resumed = st.Offset > 0
	s.progress.done(st.Offset)
	if st.Offset < d.Size {
		r, err := open(st.Offset)
		if err != nil {
			return resumed, fmt.Errorf("open: %w", err)
		}
		err = s.copy(w, r, d.Size-st.Offset)
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
	case err == nil, errdefs.IsAlreadyExists(err):
		return resumed, nil
	case errdefs.IsFailedPrecondition(err):
		s.progress.done(-d.Size)
		return resumed, fmt.Errorf("the bytes have another digest: %w", archive.ErrDigestMismatch)
	default:
		return resumed, writerError("commit", err)
	}
}

// copy moves exactly n bytes; errors of reading are the source's, errors of writing containerd's.
func (s *session) copy(w io.Writer, r io.Reader, n int64) error {
	buf := make([]byte, min(n, copyBuffer))
	for n > 0 {
		k, err := io.ReadFull(r, buf[:min(n, int64(len(buf)))])
		if k > 0 {
			if _, err := w.Write(buf[:k]); err != nil {
				return writerError("write", err)
			}
			n -= int64(k)
			s.progress.done(int64(k))
		}
		if err != nil && n > 0 {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = archive.ErrTruncated
			}
			return fmt.Errorf("read: %d bytes short: %w", n, err)
		}
	}
	return nil
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

// writerError is an error of an ingest. gRPC tells of a connection that has ended by io.EOF alone, of which
// containerd's client keeps the text.
func writerError(doing string, err error) error {
	if strings.HasSuffix(err.Error(), io.EOF.Error()) {
		return fmt.Errorf("%s: the connection to containerd broke: %w", doing, ErrRuntimeUnavailable)
	}
	return runtimeError(doing, err)
}

// writer opens an ingest, waiting a little while another writer holds it. content.OpenWriter would wait for ever,
// and also for a daemon that is down.
func (s *session) writer(ctx context.Context, ref string, d ocispec.Descriptor) (content.Writer, error) {
	deadline := time.Now().Add(ingestWait)
	for pause := 2 * time.Millisecond; ; pause *= 2 {
		w, err := s.services.content.Writer(ctx, content.WithRef(ref), content.WithDescriptor(d))
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

// isNoSpace recognises a full disk behind gRPC, which keeps the text of an error but not its identity.
func isNoSpace(err error) bool {
	return err != nil && strings.Contains(err.Error(), "no space left on device")
}

// streamSink stores what a single pass over an archive meets. It implements archive.Sink.
type streamSink struct{ *session }

// Put stores one member. A digest that the member's name claims is verified; a blob that is present is skipped.
func (s streamSink) Put(ctx context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error) {
	if claimed != "" {
		d, opened := ocispec.Descriptor{Digest: claimed, Size: size}, false
		return claimed, s.put(ctx, d, func(offset int64) (io.ReadCloser, error) {
			if opened {
				return nil, fmt.Errorf("a stream cannot be read again: %w", source.ErrUnavailable)
			}
			opened = true
			if _, err := io.CopyN(io.Discard, r, offset); err != nil {
				return nil, fmt.Errorf("skip %d bytes: %w", offset, err)
			}
			return io.NopCloser(r), nil
		})
	}
	s.streams++
	ref := fmt.Sprintf("stream-%d", s.streams)
	// What an earlier attempt left under this reference may be of another member.
	if err := s.services.content.Abort(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
		return "", runtimeError("abort ingest", err)
	}
	sum := digest.Canonical.Digester()
	err := s.withWriter(ctx, ref, ocispec.Descriptor{Size: size}, func(w content.Writer) error {
		if err := s.copy(w, io.TeeReader(r, sum.Hash()), size); err != nil {
			return err
		}
		switch err := w.Commit(ctx, size, sum.Digest()); {
		case err == nil:
			s.written[sum.Digest()] = size
		case !errdefs.IsAlreadyExists(err):
			return writerError("commit", err)
		}
		return nil
	})
	return sum.Digest(), err
}

// Get reads a small blob back.
func (s streamSink) Get(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	return s.importer.readBlob(ctx, d, limit)
}
