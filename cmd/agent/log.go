package main

import (
	"context"
	"errors"
	"log/slog"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// unlessBenign is a slog.Handler that drops errors which are none: what failed only because this process ends, such as each
// Event that client-go could not send, and that another process was faster, for the leaders' Lease or at a write that is
// repeated.
type unlessBenign struct{ slog.Handler }

// Handle implements slog.Handler.
func (h unlessBenign) Handle(ctx context.Context, r slog.Record) error {
	benign := false
	r.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		benign = ok && (errors.Is(err, context.Canceled) || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err))
		return !benign
	})
	if benign {
		return nil
	}
	return h.Handler.Handle(ctx, r) //nolint:wrapcheck // it stands in for the inner handler
}

// WithAttrs implements slog.Handler.
func (h unlessBenign) WithAttrs(attrs []slog.Attr) slog.Handler {
	return unlessBenign{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h unlessBenign) WithGroup(name string) slog.Handler {
	return unlessBenign{h.Handler.WithGroup(name)}
}
