package transfer

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"
)

func TestReadAhead(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*PieceSize/16+7)
	a := ReadAhead(bytes.NewReader(data))
	var got []byte
	for {
		piece, err := a.Next()
		got = append(got, piece...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a.Stop()
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes, want the %d that there are", len(got), len(data))
	}
}

// What a slow source has given is handed on although more could be waited for.
func TestReadAheadOfASlowSource(t *testing.T) {
	r, w := io.Pipe()
	a := ReadAhead(r)
	defer a.Stop()
	defer r.Close()
	go func() {
		for range 3 {
			if _, err := w.Write([]byte("drop")); err != nil {
				return
			}
			time.Sleep(2 * pieceTime)
		}
	}()
	piece, err := a.Next()
	if err != nil || len(piece) == 0 || len(piece) > 8 {
		t.Errorf("%q, %v", piece, err)
	}
}

// The reader is not used after stop: its owner may close it.
func TestReadAheadStops(t *testing.T) {
	var stopped atomic.Bool
	a := ReadAhead(readerFunc(func(p []byte) (int, error) {
		if stopped.Load() {
			t.Error("read after stop")
		}
		return len(p), nil
	}))
	if _, err := a.Next(); err != nil {
		t.Fatal(err)
	}
	a.Stop()
	stopped.Store(true)
	time.Sleep(10 * time.Millisecond)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
