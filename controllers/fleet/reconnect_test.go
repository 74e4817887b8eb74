package fleet

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// refusing is a server that accepts no connections until it is back.
type refusing struct{ back time.Time }

var errRefused = errors.New("connection refused")

func (r refusing) RoundTrip(*http.Request) (*http.Response, error) {
	if time.Now().Before(r.back) {
		return nil, errRefused
	}
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
}

func TestReconnect(t *testing.T) {
	for _, test := range []struct {
		why     string
		method  string
		away    time.Duration
		stop    time.Duration
		want    error
		atLeast time.Duration
		atMost  time.Duration
	}{
		{"it is there", "GET", 0, time.Hour, nil, 0, 0},
		{"two minutes", "GET", 2 * time.Minute, time.Hour, nil, 2 * time.Minute, 2*time.Minute + reconnectLimit},
		{"a write is told at once", "PATCH", time.Minute, time.Hour, errRefused, 0, 0},
		{"nobody waits any more", "GET", time.Minute, 10 * time.Second, errRefused, 10 * time.Second, 10 * time.Second},
		{"for ever", "GET", 24 * time.Hour, 48 * time.Hour, errRefused, reconnectPatience, reconnectPatience + reconnectLimit},
	} {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), test.stop)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, test.method, "https://api.example/", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			res, err := (reconnecting{refusing{begin.Add(test.away)}, noJitter}).RoundTrip(req)
			if err == nil {
				res.Body.Close()
			}
			if took := time.Since(begin); !errors.Is(err, test.want) || took < test.atLeast || took > test.atMost {
				t.Errorf("%s: %v after %s", test.why, err, took)
			}
		})
	}
}
