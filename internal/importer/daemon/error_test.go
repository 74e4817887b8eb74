package daemon

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestError(t *testing.T) {
	for name, tc := range map[string]struct {
		err          error
		call, writer error // the kind, nil for none of ours
	}{
		"refused":             {status.Error(codes.Unavailable, "connection refused"), ErrUnavailable, ErrUnavailable},
		"refused, translated": {fmt.Errorf("dial: %w", errdefs.ErrUnavailable), ErrUnavailable, ErrUnavailable},
		"no answer":           {status.Error(codes.DeadlineExceeded, "keepalive"), ErrUnavailable, ErrUnavailable},
		"full":                {status.Error(codes.Unknown, "write: no space left on device"), ErrNoSpace, ErrNoSpace},
		"not found":           {status.Error(codes.NotFound, "blob"), errdefs.ErrNotFound, errdefs.ErrNotFound},
		"stream ended":        {fmt.Errorf("send: %s", io.EOF), nil, ErrUnavailable}, //nolint:errorlint // as containerd does
		"something else":      {errors.New("permission denied"), nil, nil},
	} {
		for _, kind := range []error{ErrUnavailable, ErrNoSpace, errdefs.ErrNotFound} {
			if err := Error("read", tc.err); errors.Is(err, kind) != (kind == tc.call) { //nolint:errorlint // the row's own
				t.Errorf("%s: %q is %q: %v", name, err, kind, kind != tc.call) //nolint:errorlint // as above
			}
			if err := WriterError("read", tc.err); errors.Is(err, kind) != (kind == tc.writer) { //nolint:errorlint // as above
				t.Errorf("%s, writing: %q is %q: %v", name, err, kind, kind != tc.writer) //nolint:errorlint // as above
			}
		}
	}
	if Error("read", nil) != nil || WriterError("read", nil) != nil {
		t.Error("an error without one")
	}
}
