package node

import "time"

const (
	// retryBase and retryLimit bound the wait after a failure: a short hiccup costs seconds, and after a long outage
	// of a server the agents of a large cluster come back to it spread over minutes.
	retryBase  = 2 * time.Second
	retryLimit = 5 * time.Minute
	// runtimeRetryLimit is retryLimit for the node's own containerd: asking it costs next to nothing, and its
	// restart takes seconds.
	runtimeRetryLimit = 15 * time.Second
	// stalledInterval is how often a terminal failure is tried again nevertheless: the archive may have been replaced in
	// its place, or the name that it conflicts with may be gone.
	stalledInterval = 10 * time.Minute
)

// backoff is when something may be tried again. The zero value is ready at once.
type backoff struct {
	failures int // in a row
	readyAt  time.Time
}

// failed postpones the next attempt with full jitter: by any time up to a bound that doubles with each failure until limit.
func (b *backoff) failed(now time.Time, limit time.Duration, jitter func() float64) {
	b.failures++
	bound := retryBase
	for range b.failures - 1 {
		if bound *= 2; bound >= limit {
			break
		}
	}
	b.readyAt = now.Add(time.Duration(jitter() * float64(min(bound, limit))))
}

// stalled postpones the next attempt by about stalledInterval.
func (b *backoff) stalled(now time.Time, jitter func() float64) {
	b.failures++
	b.readyAt = now.Add(about(stalledInterval, jitter))
}

func (b *backoff) reset() { *b = backoff{} }

// about is a duration plus or minus a fifth, so that many agents do not do the same at the same time.
func about(d time.Duration, jitter func() float64) time.Duration {
	return time.Duration((0.8 + 0.4*jitter()) * float64(d))
}

// sooner is the smaller of two waits, of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
