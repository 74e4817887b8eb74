package source

import (
	"sync"
	"time"
)

// One rule decides how remote blobs are read: bytes that nobody wants are read through where that takes less time than
// another request. Both are measured with the blob's own answers.
const (
	// startRate is what the first startBytes are believed to have come with, in bytes a second.
	startRate  = 1 << 20
	startBytes = 16 << 10
	// leastMeasured is the size in bytes from which on an answer tells of the rate: small ones come in one packet.
	leastMeasured = 16 << 10
	// recentBytes is how much of what has come the rate tells of, in bytes.
	recentBytes = 4 << 20
	// leastGap is read through in any case, in bytes: the tar headers between two members.
	leastGap = 16 << 10
	// mostGap bounds in bytes what is read through, however far away the server is: time is not all that a byte costs.
	mostGap = 256 << 10
)

// RoundTripBytes is how many bytes of b come over one connection in the time that the answer to a request takes to begin;
// 0 if that is nothing, or unknown.
func RoundTripBytes(b Blob) int64 {
	if paced, ok := b.(interface{ RoundTripBytes() int64 }); ok {
		return paced.RoundTripBytes()
	}
	return 0
}

// ReadThrough tells whether a gap of n bytes between two parts of b is to be read rather than asked around.
func ReadThrough(b Blob, n int64) bool {
	return n <= min(max(RoundTripBytes(b), leastGap), mostGap)
}

// pace is what the answers so far tell of the way to a server.
type pace struct {
	mu        sync.Mutex
	roundTrip time.Duration // the least: what is more was the server's work
	bytes     float64       // the latest, 0 for none,
	took      time.Duration // and how long they were waited for
}

// began notes how long it took until an answer began.
func (p *pace) began(roundTrip time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.roundTrip == 0 || roundTrip < p.roundTrip {
		p.roundTrip = roundTrip
	}
}

// came notes how long the n bytes of an answer's body were waited for.
func (p *pace) came(n int64, took time.Duration) {
	if n < leastMeasured {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes == 0 {
		p.bytes, p.took = startBytes, startBytes*time.Second/startRate
	}
	p.bytes += float64(n)
	p.took += took
	if p.bytes > recentBytes {
		p.took = time.Duration(float64(p.took) * recentBytes / p.bytes)
		p.bytes = recentBytes
	}
}

func (p *pace) roundTripBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes == 0 {
		return int64(p.roundTrip.Seconds() * startRate)
	}
	return int64(p.bytes * p.roundTrip.Seconds() / p.took.Seconds())
}
