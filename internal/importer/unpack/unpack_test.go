package unpack

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/daemon"
)

func TestKeyedLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keyedLocks{}
		for _, key := range []string{"a", "b"} { // one does not keep from another
			if err := k.Lock(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		held := 0
		for range 3 {
			go func() {
				if err := k.Lock(t.Context(), "a"); err != nil {
					t.Error(err)
				}
				held++
			}()
		}
		for want := range 4 {
			synctest.Wait()
			if held != want {
				t.Fatalf("%d have taken the key, want %d", held, want)
			}
			k.Unlock("a")
		}
		k.Unlock("b")
	})
}

// Who gives up has not taken the key.
func TestKeyedLocksGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keyedLocks{}
		if err := k.Lock(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gave := make(chan error, 1)
		go func() { gave <- k.Lock(ctx, "a") }()
		synctest.Wait()
		cancel()
		if err := <-gave; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		k.Unlock("a")
		if err := k.Lock(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	})
}

func TestReadySet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r ReadySet
		ready, other := digest.FromString("ready"), digest.FromString("other")
		var came atomic.Int32
		for range 2 {
			go func() {
				if err := r.Wait(t.Context(), ready); err != nil {
					t.Error(err)
				}
				came.Add(1)
			}()
		}
		ctx, cancel := context.WithCancel(t.Context())
		gave := make(chan error, 1)
		go func() { gave <- r.Wait(ctx, other) }()
		synctest.Wait()
		if came.Load() != 0 {
			t.Error("a blob that has not come was not waited for")
		}
		r.Add(ready)
		r.Add(ready) // a blob that was there, and was brought by a stream before
		synctest.Wait()
		if came.Load() != 2 {
			t.Errorf("%d of 2 have returned", came.Load())
		}
		if err := r.Wait(t.Context(), ready); err != nil {
			t.Errorf("after it has come: %v", err)
		}
		select {
		case err := <-gave:
			t.Errorf("another blob: %v", err)
		default:
		}
		cancel()
		if err := <-gave; !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
	})
}

// Each row is an error of containerd's, of the Unpacker or (applied) of applying a layer, as a client gets it.
func TestUnpackErrors(t *testing.T) {
	grpc := func(c codes.Code, text string) error { return errgrpc.ToNative(status.Error(c, text)) }
	for name, tc := range map[string]struct {
		err     error
		applied bool
		want    error // nil for none of ours
	}{
		"the daemon is gone":             {grpc(codes.Unavailable, "connection refused"), true, daemon.ErrUnavailable},
		"the daemon is gone in between":  {fmt.Errorf("prepare: %w", errdefs.ErrUnavailable), false, daemon.ErrUnavailable},
		"the daemon does not answer":     {grpc(codes.DeadlineExceeded, "keepalive"), true, daemon.ErrUnavailable},
		"the disk is full":               {grpc(codes.Unknown, "write /etc/passwd: no space left on device"), true, daemon.ErrNoSpace},
		"the disk is full for snapshots": {fmt.Errorf("%w: mkdir: no space left on device", errdefs.ErrUnknown), false, daemon.ErrNoSpace},
		"another diff_id":                {fmt.Errorf("layer: %w", archive.ErrDigestMismatch), true, archive.ErrDigestMismatch},
		"cancelled here":                 {fmt.Errorf("apply: %w", context.Canceled), false, context.Canceled},
		"cancelled there":                {grpc(codes.Canceled, "context canceled"), true, context.Canceled},
		"no tar":                         {grpc(codes.Unknown, "archive/tar: invalid tar header"), true, archive.ErrInvalid},
		"cut":                            {grpc(codes.Unknown, "unexpected EOF"), true, archive.ErrInvalid},
		"damaged gzip":                   {grpc(codes.Unknown, "gzip: invalid checksum"), true, archive.ErrInvalid},
		"damaged zstd":                   {grpc(codes.Unknown, "zstd: corrupt"), true, archive.ErrInvalid},
		"other magic":                    {grpc(codes.Unknown, "invalid input: magic number mismatch"), true, archive.ErrInvalid},
		"igzip's":                        {grpc(codes.Unknown, "failed to decompress: exit status 1"), true, archive.ErrInvalid},
		"a layer's file is refused":      {grpc(codes.InvalidArgument, "unhandled file type"), true, archive.ErrInvalid},
		"a layer's media type is not":    {fmt.Errorf("apply: %w", errdefs.ErrFailedPrecondition), true, archive.ErrInvalid},
		"a snapshot is refused":          {fmt.Errorf("prepare: %w", errdefs.ErrInvalidArgument), false, nil},
		"like damage, but elsewhere":     {errors.New("unexpected EOF"), false, nil},
		"no such snapshot":               {fmt.Errorf("commit: %w", errdefs.ErrNotFound), false, nil},
		"something else in a layer":      {grpc(codes.Unknown, "operation not permitted"), true, nil},
	} {
		err := tc.err
		if tc.applied {
			err = fmt.Errorf("apply layer error for %q: %w", "extract-1-a sha256:1", &applyError{err})
		}
		got := unpackError(err)
		for _, kind := range []error{
			daemon.ErrUnavailable, daemon.ErrNoSpace, archive.ErrDigestMismatch, archive.ErrInvalid, context.Canceled,
		} {
			if is := errors.Is(got, kind); is != (kind == tc.want) { //nolint:errorlint // the row's own
				t.Errorf("%s: %q is %q: %v", name, got, kind, is)
			}
		}
	}
}

// The same fault has the same text each time, and says which layer of which image all the same.
func TestUnpackErrorsRepeatThemselves(t *testing.T) {
	for name, tc := range map[string]struct {
		format  string // of two names that containerd makes up
		applied bool
		says    string
	}{
		"a snapshot's key":   {`failed to prepare extraction snapshot "extract-%[1]s-%[2]s sha256:f00": exists`, false, "sha256:f00"},
		"an active snapshot": {`commit snapshot extract-%[1]s-%[2]s sha256:f00 failed`, false, "sha256:f00"},
		"a mount": {
			`mount callback failed on /var/lib/containerd/tmpmounts/containerd-mount%[1]s: setxattr etc/passwd: not permitted`,
			true, "etc/passwd",
		},
		"a snapshot directory": {
			`open /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/%[1]s/fs/etc: not permitted`,
			true, "fs/etc",
		},
		"damage": {`failed to extract layer to "/tmp/containerd-mount%[1]s": unexpected EOF at %[2]s`, true, "damaged"},
	} {
		text := func(one, two string) string {
			err := fmt.Errorf(tc.format, one, two)
			if tc.applied {
				err = fmt.Errorf("apply layer error for extract-%s-%s: %w", two, one, &applyError{err})
			}
			return unpackError(err).Error()
		}
		first, second := text("4711", "Zm9v"), text("815", "YmFy")
		if first != second {
			t.Errorf("%s: %q, then %q", name, first, second)
		}
		if !strings.Contains(first, tc.says) {
			t.Errorf("%s: %q lacks %q", name, first, tc.says)
		}
	}
}
