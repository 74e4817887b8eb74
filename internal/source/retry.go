package source

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	// openAttempts bounds the requests that open a source: with the default backoff it gives up after
	// about 4 s and 8 s at most, since nothing is lost yet and the caller wants to hear of it.
	openAttempts = 6
	// resumeAttempts bounds the requests in a row that brought less than leastAnswer. With the default backoff
	// that is a minute on average: enough for a server to be restarted under a running transfer.
	resumeAttempts = 11

	backoffBase = 250 * time.Millisecond
	backoffMax  = 30 * time.Second

	// maxRetryAfter bounds what a server may ask for with Retry-After: a wait is no reason to hold an
	// import open for hours, the next attempt of the whole import can come later.
	maxRetryAfter = 30 * time.Second
)

// The least that a source must give while somebody waits for it, requests and pauses between them included. What is below
// is ErrUnavailable: the caller tries again later, and lets others have his place meanwhile.
const (
	// leastBytes in leastTime are 546 bytes a second: a quarter of the slowest satellite telephone.
	leastBytes = 64 << 10
	leastTime  = 2 * time.Minute
	// leastAnswer is what an answer must bring to be no failure, in bytes, or half of what it was asked for.
	leastAnswer = 4 << 10
)

// progress measures what a source gives against leastBytes in leastTime.
type progress struct {
	mu     sync.Mutex
	bytes  int
	waited time.Duration
}

// add notes n bytes for which somebody has waited that long. It fails when there were too few within most, which is
// leastTime but in tests.
func (p *progress) add(n int, waited, most time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waited += waited
	if p.bytes += n; p.bytes >= leastBytes {
		p.bytes, p.waited = 0, 0
	}
	if p.waited <= most {
		return nil
	}
	return fmt.Errorf("the server gave less than %d bytes in %s: %w", leastBytes, most, ErrUnavailable)
}

// backoff waits between attempts: exponentially longer, with full jitter, so that the nodes of a
// cluster do not come back to a restarted server all at once.
type backoff struct {
	base, max time.Duration
	attempts  int // allowed in a row without progress
	failed    int // since then
}

// pause waits for the next attempt after one that failed, at least as long as the server wishes. It fails when there is none
// left, or when ctx ends.
func (b *backoff) pause(ctx context.Context, last *temporaryError) error {
	if b.failed++; b.failed >= b.attempts {
		return fmt.Errorf("%w, after %d attempts", last, b.failed)
	}
	timer := time.NewTimer(b.next(last.after))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller's own
	case <-timer.C:
		return nil
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
