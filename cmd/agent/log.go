package main

import (
	"context"
	"errors"
	"log/slog"
)

// unlessCancelled is a slog.Handler that drops what failed only because this process ends: client-go logs an error for each
// Event that it could not send.
type unlessCancelled struct{ slog.Handler }

// Handle implements slog.Handler.
func (h unlessCancelled) Handle(ctx context.Context, r slog.Record) error {
	cancelled := false
	r.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		cancelled = ok && errors.Is(err, context.Canceled)
		return !cancelled
	})
	if cancelled {
		return nil
	}
	return h.Handler.Handle(ctx, r) //nolint:wrapcheck // it stands in for the inner handler
}

// WithAttrs implements slog.Handler.
func (h unlessCancelled) WithAttrs(attrs []slog.Attr) slog.Handler {
	return unlessCancelled{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h unlessCancelled) WithGroup(name string) slog.Handler {
	return unlessCancelled{h.Handler.WithGroup(name)}
}
