// Package source reads an archive's bytes from where they lie: a file, a stream or an HTTP server.
//
// It knows nothing of tar, images or Kubernetes. What it gives is a [Blob]: bytes that can be read
// at any place, or a single stream where the origin allows no more. A blob stays one blob: when the
// bytes behind it are replaced while it is being read, reading fails with [ErrChanged] instead of
// giving a mixture of two archives.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
)

// Every error of this package that is not the caller's own cancellation is one of these.
var (
	// ErrNotFound: nothing lies there (ENOENT, 404, 410).
	ErrNotFound = errors.New("source not found")
	// ErrDenied: it may not be read with these credentials (EACCES, 401, 403, a refused client certificate).
	ErrDenied = errors.New("access to the source denied")
	// ErrUnavailable: it could not be read now; a later attempt may succeed.
	ErrUnavailable = errors.New("source unavailable")
	// ErrChanged: the source was replaced while it was being read; a new attempt reads the new one.
	ErrChanged = errors.New("source changed while it was read")
	// ErrInvalid: this path, URL or credential is not acceptable; no later attempt can succeed.
	ErrInvalid = errors.New("source not acceptable")
)

// Blob is the bytes of one archive.
type Blob interface {
	// ReadAt is for small reads of metadata: it reads a little more than was asked for and keeps it. It
	// needs RandomAccess, and ends with the context that the blob was opened with.
	io.ReaderAt

	// Section streams n bytes from offset off, or all that follow when n is negative; one that reaches
	// beyond the end is cut there, as an io.SectionReader is. Sections may be read at the same time.
	// Without RandomAccess only Section(ctx, 0, -1) is possible, and only once.
	Section(ctx context.Context, off, n int64) (io.ReadCloser, error)

	// RandomAccess tells whether any place can be read at any time.
	RandomAccess() bool

	// Remote tells whether each place that is read costs a round trip to another machine.
	Remote() bool

	// Size is the number of bytes, -1 if unknown.
	Size() int64

	// BytesRead is the number of bytes taken from the source so far, read-ahead included.
	BytesRead() int64

	// Validator changes when the bytes do: an ETag, a Last-Modified date, or a file's size and time of modification.
	// It has at most MaxValidator bytes of printable ASCII, and is empty when the source tells none.
	// HTTPChanged and ChangedUnder compare it with the source of later.
	Validator() string

	// String names the source without secrets: no user, no password, no query string.
	String() string

	// Close releases what is held. Sections that are still open fail.
	Close() error
}

// WhyStream tells in a few words why b gives no random access; empty if it does.
func WhyStream(b Blob) string {
	if s, ok := b.(interface{ whyStream() string }); ok {
		return s.whyStream()
	}
	return ""
}

// blob is what all blobs of this package are.
type blob struct {
	ctx       context.Context // ends with that of opening, and with Close
	cancel    context.CancelFunc
	name      string
	size      int64
	validator string
	stream    string // why there is no random access, or empty
	read      atomic.Int64
	taken     atomic.Bool // the only section of a stream
	ahead     readAhead   // of ReadAt
}

func (b *blob) init(ctx context.Context, name string, size int64) {
	b.ctx, b.cancel = context.WithCancel(ctx)
	b.name, b.size = name, size
}

func (b *blob) RandomAccess() bool { return b.stream == "" }
func (b *blob) Remote() bool       { return false }
func (b *blob) Size() int64        { return b.size }
func (b *blob) BytesRead() int64   { return b.read.Load() }
func (b *blob) Validator() string  { return b.validator }
func (b *blob) String() string     { return b.name }
func (b *blob) whyStream() string  { return b.stream }

func (b *blob) ReadAt(p []byte, off int64) (int, error) {
	if _, err := b.check(off, 0); err != nil {
		return 0, err
	}
	return b.ahead.readAt(p, off, b.size)
}

// check refuses a section that there cannot be, and gives its length in bytes: it ends where the blob ends, at the latest.
func (b *blob) check(off, n int64) (int64, error) {
	if !b.RandomAccess() {
		if off != 0 || n >= 0 || b.taken.Swap(true) {
			return 0, fmt.Errorf("read %s: a stream can be read only once, from its start: %w", b.name, ErrInvalid)
		}
		return math.MaxInt64, nil
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s: negative offset: %w", b.name, ErrInvalid)
	}
	rest := max(b.size-off, 0)
	if n < 0 {
		return rest, nil
	}
	return min(n, rest), nil
}

// joined is a context that ends with ctx or with the blob's.
func (b *blob) joined(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(b.ctx, func() { cancel(b.ctx.Err()) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}

// section reads [off, end) of a local blob.
type section struct {
	ctx      context.Context
	cancel   context.CancelFunc
	readAt   func(ctx context.Context, p []byte, off int64) (int, error) // as io.ReaderAt's, but it ends with ctx
	off, end int64
}

func (b *blob) section(ctx context.Context, off, n int64, readAt func(context.Context, []byte, int64) (int, error)) (io.ReadCloser, error) {
	n, err := b.check(off, n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := b.joined(ctx)
	return &section{ctx, cancel, readAt, off, off + n}, nil
}

func (s *section) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err //nolint:wrapcheck // the caller's own
	}
	if s.off == s.end {
		return 0, io.EOF
	}
	n, err := s.readAt(s.ctx, p[:min(int64(len(p)), s.end-s.off)], s.off)
	s.off += int64(n)
	return n, err
}

func (s *section) Close() error {
	s.cancel()
	return nil
}

// OpenStream makes a blob of r, which is read once, from start to end; name says what it is. When r is
// an io.Closer, Close closes it.
func OpenStream(r io.Reader, name string) Blob {
	b := &streamBlob{r: r}
	b.init(context.Background(), name, -1)
	b.stream = "a pipe has no random access"
	return b
}

// streamBlob is an open reader, such as standard input.
type streamBlob struct {
	blob
	r io.Reader
}

// Section gives a reader that waits for a silent pipe until ctx ends.
func (b *streamBlob) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	var failed error
	return b.section(ctx, off, n, func(ctx context.Context, p []byte, _ int64) (int, error) {
		if failed != nil || len(p) == 0 {
			return 0, failed
		}
		n, err := readInterruptibly(ctx, forever, p, b.r.Read)
		b.read.Add(int64(n))
		switch {
		case err == nil, errors.Is(err, io.EOF), ctx.Err() != nil:
			failed = err
		default:
			failed = fmt.Errorf("read %s: %w", b.name, fileFault(err))
		}
		return n, failed
	})
}

func (b *streamBlob) Close() error {
	b.cancel()
	if c, ok := b.r.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
