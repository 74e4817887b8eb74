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
	// stalledInterval is how often what is of little use is tried nevertheless: an archive may have been replaced in
	// its place, or a name in its way may have gone.
	stalledInterval = 10 * time.Minute
)

// attempt is when something may be tried again. The zero value may be tried at once.
type attempt struct {
	tries     int // failed ones in a row
	asks      int // those of them that only asked a containerd that did not answer
	notBefore time.Time
}

// failed postpones the next try, by full jitter: any time up to a bound that doubles with each failure until limit.
func (t *attempt) failed(now time.Time, limit time.Duration, jitter func() float64) {
	t.tries++
	t.notBefore = now.Add(time.Duration(jitter() * float64(backoffBound(t.tries, limit))))
}

// unanswered is failed where nothing was tried yet.
func (t *attempt) unanswered(now time.Time, limit time.Duration, jitter func() float64) {
	t.failed(now, limit, jitter)
	t.asks++
}

// answered forgets the tries that only asked. Those that ended containerd, or the agent, keep counting.
func (t *attempt) answered() { t.tries, t.asks = t.tries-t.asks, 0 }

// stalled postpones the next try by about stalledInterval.
func (t *attempt) stalled(now time.Time, jitter func() float64) {
	t.tries++
	t.notBefore = now.Add(time.Duration((0.8 + 0.4*jitter()) * float64(stalledInterval)))
}

// about is a duration give or take a tenth, so that many agents do not do the same at the same time.
func about(d time.Duration, jitter func() float64) time.Duration {
	return time.Duration((0.9 + 0.2*jitter()) * float64(d))
}

func backoffBound(tries int, limit time.Duration) time.Duration {
	bound := retryBase
	for range tries - 1 {
		if bound *= 2; bound >= limit {
			return limit
		}
	}
	return bound
}

func (t *attempt) reset() { *t = attempt{} }
