package source

import (
	"context"
	"errors"
	"fmt"
	"io"
)

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

func (b *streamBlob) ReadAt([]byte, int64) (int, error) {
	return 0, fmt.Errorf("read %s: %w", b.name, errStreamOnce)
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
		case errors.Is(err, ErrUnavailable):
			failed = fmt.Errorf("read %s: %w", b.name, err)
		default:
			failed = fmt.Errorf("read %s: %s: %w", b.name, describe(err), ErrUnavailable)
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
