// Package transfer moves bytes from a source to containerd: it reads ahead on a goroutine of its own while containerd writes.
//
//	ahead := transfer.ReadAhead(section)
//	defer ahead.Stop()
//	piece, err := ahead.Next()
package transfer

import (
	"io"
	"sync"
	"time"
)

const (
	// PieceSize is the most that containerd is given at once, in bytes. Each blob that is on its way takes two of them.
	PieceSize = 512 << 10
	// pieceTime is how long bytes are gathered for a piece. Each costs containerd a message; but of a slow source each byte is
	// to be on disk soon, and not read again by the next attempt.
	pieceTime = 50 * time.Millisecond
)

var pieces = sync.Pool{New: func() any { return new([PieceSize]byte) }}

// Ahead reads on a goroutine of its own, one piece further than what is being used. It implements io.Reader.
type Ahead struct {
	full    chan piece
	free    chan *[PieceSize]byte
	stopped chan struct{}
	current *[PieceSize]byte
	rest    []byte // of current, for Read
	err     error  // that follows rest
}

type piece struct {
	buf *[PieceSize]byte
	n   int
	err error
}

// ReadAhead begins to read r, until its first error or until Stop.
func ReadAhead(r io.Reader) *Ahead {
	a := &Ahead{full: make(chan piece), free: make(chan *[PieceSize]byte, 2), stopped: make(chan struct{})}
	for range cap(a.free) {
		a.free <- pieces.Get().(*[PieceSize]byte)
	}
	go a.run(r)
	return a
}

func (a *Ahead) run(r io.Reader) {
	defer close(a.full)
	for {
		select {
		case <-a.stopped:
			return
		case buf := <-a.free:
			p := piece{buf: buf}
			for start := time.Now(); p.n < len(buf) && p.err == nil && (p.n == 0 || time.Since(start) < pieceTime); {
				var n int
				n, p.err = r.Read(buf[p.n:])
				p.n += n
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
	p := <-a.full
	a.current = p.buf
	return p.buf[:p.n], p.err
}

func (a *Ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		a.rest, a.err = a.Next()
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Stop returns when the reader is not used any more.
func (a *Ahead) Stop() {
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
