package fleet

import (
	"math/rand/v2"
	"net/http"
	"time"
)

const (
	// reconnectLimit bounds the wait between attempts to reach an API server that is away.
	reconnectLimit = 3 * time.Second
	// reconnectPatience is how long they go on within one request.
	reconnectPatience = 10 * time.Minute
)

// Reconnect keeps on trying to reach an API server that does not accept connections, in every request that only reads.
// After two minutes informers try again once in 30 to 60 s: right for thousands of agents, which know what they have to
// write without, but the one process that sums up their reports would know them so much later.
func Reconnect(next http.RoundTripper) http.RoundTripper { return reconnecting{next, rand.Float64} }

type reconnecting struct {
	next   http.RoundTripper
	jitter func() float64
}

func (r reconnecting) RoundTrip(req *http.Request) (*http.Response, error) {
	bound := apiRetryBase
	for begin := time.Now(); ; {
		res, err := r.next.RoundTrip(req)
		now := time.Now()
		if err == nil || req.Method != http.MethodGet || req.Context().Err() != nil || now.Sub(begin) > reconnectPatience {
			return res, err
		}
		bound = min(2*bound, reconnectLimit)
		wait := time.Duration(r.jitter() * float64(bound))
		select {
		case <-req.Context().Done():
			return res, err
		case <-time.After(wait):
		}
	}
}
