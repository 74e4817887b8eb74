package store

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// pieceSize is the most that containerd is given at once, in bytes. Each blob that is on its way takes two
	// of them.
	pieceSize = 512 << 10
	// MinPiece is the least, in bytes, as long as the source gives that much within pieceTime: each piece costs containerd
	// a message. Of a slow source each byte is on disk soon, and not read again by the next attempt.
	MinPiece  = 64 << 10
	pieceTime = 50 * time.Millisecond
)

var pieces = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// Ahead reads on a goroutine of its own, one piece further than what is being used.
type Ahead struct {
	full    chan piece
	free    chan *[pieceSize]byte
	waiting atomic.Bool // somebody waits for the next piece
	stopped chan struct{}
	current *[pieceSize]byte
}

type piece struct {
	buf *[pieceSize]byte
	n   int
	err error
}

// ReadAhead begins to read r, until its first error or until Stop.
func ReadAhead(r io.Reader) *Ahead {
	a := &Ahead{full: make(chan piece), free: make(chan *[pieceSize]byte, 2), stopped: make(chan struct{})}
	for range cap(a.free) {
		a.free <- pieces.Get().(*[pieceSize]byte)
	}
	go a.run(r)
	return a
}

// run ends after the first error of r.
func (a *Ahead) run(r io.Reader) {
	defer close(a.full)
	for {
		select {
		case <-a.stopped:
			return
		case buf := <-a.free:
			p := piece{buf: buf}
			start := time.Now()
			for p.n < len(buf) && p.err == nil {
				var n int
				n, p.err = r.Read(buf[p.n:])
				p.n += n
				if a.waiting.Load() && p.n > 0 && (p.n >= MinPiece || time.Since(start) > pieceTime) {
					break
				}
			}
			select {
			case <-a.stopped:
				pieces.Put(buf)
				return
			case a.full <- p:
			}
			if p.err != nil {
				return
			}
		}
	}
}

// Next returns the bytes that follow, until it is called again, and with the last of them the error of the reader.
func (a *Ahead) Next() ([]byte, error) {
	if a.current != nil {
		a.free <- a.current
	}
	a.waiting.Store(true)
	p := <-a.full
	a.waiting.Store(false)
	a.current = p.buf
	return p.buf[:p.n], p.err
}

// Stop returns when the reader is not used any more.
func (a *Ahead) Stop() {
	a.waiting.Store(true) // what comes slowly is not gathered any more
	close(a.stopped)
	for p := range a.full {
		pieces.Put(p.buf)
	}
	close(a.free)
	for buf := range a.free {
		pieces.Put(buf)
	}
	if a.current != nil {
		pieces.Put(a.current)
	}
}

// AheadReader is what is read ahead as a stream.
type AheadReader struct {
	*Ahead
	rest []byte
	err  error
}

// NewAheadReader begins to read r. Stop ends it.
func NewAheadReader(r io.Reader) *AheadReader { return &AheadReader{Ahead: ReadAhead(r)} }

func (r *AheadReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.rest, r.err = r.Next()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
