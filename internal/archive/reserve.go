package archive

import "context"

type reserveKey struct{}

// WithReserve returns a context for reading an archive. Before the archive's metadata takes more memory than that of most
// archives, reserve is called, each time that it grows. It may wait until there is memory; its error ends the reading.
func WithReserve(ctx context.Context, reserve func(context.Context) error) context.Context {
	return context.WithValue(ctx, reserveKey{}, reserve)
}

// Reserve waits until there is memory for an archive with much metadata, where the context says how.
func Reserve(ctx context.Context) error {
	if reserve, ok := ctx.Value(reserveKey{}).(func(context.Context) error); ok {
		return reserve(ctx)
	}
	return nil
}
