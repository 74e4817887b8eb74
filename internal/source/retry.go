package source

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

const (
	// openAttempts bounds the requests that open a source: with the default backoff it gives up after
	// about 4 s and 8 s at most, since nothing is lost yet and the caller wants to hear of it.
	openAttempts = 6
	// resumeAttempts bounds the requests in a row that brought not a single byte. With the default
	// backoff that is 45 s on average: enough for a server to be restarted under a running transfer.
	resumeAttempts = 11

	defaultBackoffBase = 250 * time.Millisecond
	defaultBackoffMax  = 30 * time.Second

	// maxRetryAfter bounds what a server may ask for with Retry-After: a wait is no reason to hold an
	// import open for hours, the next attempt of the whole import can come later.
	maxRetryAfter = 30 * time.Second
)

// backoff waits between attempts: exponentially longer, with full jitter, so that the nodes of a
// cluster do not come back to a restarted server all at once.
type backoff struct {
	base, max time.Duration
	attempts  int // allowed in a row without progress
	failed    int // so far
}

// progress makes the next failure the first again.
func (b *backoff) progress() { b.failed = 0 }

// again waits for the next attempt, at least atLeast. It reports false when there is none left, or
// when ctx ended.
func (b *backoff) again(ctx context.Context, atLeast time.Duration) bool {
	b.failed++
	if b.failed >= b.attempts {
		return false
	}
	timer := time.NewTimer(b.next(atLeast))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// next is how long to wait now.
func (b *backoff) next(atLeast time.Duration) time.Duration {
	limit := b.max
	if shift := b.failed - 1; shift < 20 {
		limit = min(limit, b.base<<shift)
	}
	return max(rand.N(limit+1), min(atLeast, maxRetryAfter)) //nolint:gosec // jitter is no secret
}

// retryAfter reads the header of RFC 9110, section 10.2.3: seconds or a date. Anything else is 0.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	if date, err := http.ParseTime(value); err == nil {
		return min(max(date.Sub(now), 0), maxRetryAfter)
	}
	return 0
}
