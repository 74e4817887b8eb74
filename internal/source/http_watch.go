package source

import (
	"context"
	"errors"
	"fmt"
	"time"
)

var errIdle = errors.New("idle timeout")

// watch ends a request while it waits for the server longer than allowed. The clock runs only while
// somebody waits: a reader that takes its time is not the server's fault.
type watch struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timeout time.Duration
	timer   *time.Timer
}

// newWatch returns the context for the request.
func newWatch(ctx context.Context, timeout time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{ctx: ctx, cancel: cancel, timeout: timeout}
	w.timer = time.AfterFunc(timeout, func() { cancel(errIdle) })
	w.timer.Stop()
	return ctx, w
}

func (w *watch) start() { w.timer.Reset(w.timeout) }
func (w *watch) stop()  { w.timer.Stop() }

// end releases the request; nothing can be read from it any more.
func (w *watch) end() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

func (w *watch) expired() bool { return errors.Is(context.Cause(w.ctx), errIdle) }
func (w *watch) text() string  { return fmt.Sprintf("the server sent nothing for %s", w.timeout) }
