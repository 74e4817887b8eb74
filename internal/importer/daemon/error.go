// Package daemon says why a call of containerd failed, so that callers need not know how its errors come over gRPC:
//
//	if err := store.Abort(ctx, ref); err != nil {
//		return daemon.Error("abort ingest "+ref, err) // errors.Is(err, daemon.ErrUnavailable) when containerd is down
//	}
package daemon

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"
)

var (
	// ErrUnavailable is a containerd that does not answer.
	ErrUnavailable = errors.New("containerd is unavailable")
	// ErrNoSpace is a file system of containerd's without room for the content.
	ErrNoSpace = errors.New("insufficient disk space")
)

// Error wraps what a call of containerd failed with: what was being done, and ErrUnavailable or ErrNoSpace where that is
// the reason. The error stays one of errdefs' kinds. It is nil if err is.
func Error(doing string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok { // not every method of the client translates
		err = errgrpc.ToNative(err)
	}
	switch {
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err):
		return fmt.Errorf("%s: %w: %w", doing, ErrUnavailable, err)
	case strings.Contains(err.Error(), "no space left on device"): // gRPC keeps the text of ENOSPC, not its identity
		return fmt.Errorf("%s: %w: %w", doing, ErrNoSpace, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// WriterError is Error for a content.Writer. gRPC reports a stream whose connection has ended as io.EOF, of which
// containerd's client keeps the text only. Other calls may fail with such a text because of a damaged layer.
func WriterError(doing string, err error) error {
	if err != nil && strings.HasSuffix(err.Error(), io.EOF.Error()) {
		return fmt.Errorf("%s: the connection to containerd broke: %w", doing, ErrUnavailable)
	}
	return Error(doing, err)
}
