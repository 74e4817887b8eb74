package source

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hanging is a file of a dead NFS server: reading and closing it do not return before it is back.
type hanging struct {
	*os.File
	reading chan struct{}
	back    chan struct{}
}

func (h *hanging) ReadAt(p []byte, off int64) (int, error) {
	h.reading <- struct{}{}
	<-h.back
	return h.File.ReadAt(p, off)
}

func (h *hanging) Close() error {
	<-h.back
	return h.File.Close()
}

func hang(t *testing.T) (open func() *fileBlob, h *hanging) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	h = &hanging{reading: make(chan struct{}, 100), back: make(chan struct{})}
	return func() *fileBlob {
		var info fs.FileInfo
		f, err := os.Open(path)
		if err == nil {
			info, err = f.Stat()
		}
		if err != nil {
			t.Fatal(err)
		}
		return newFileBlob(t.Context(), &hanging{f, h.reading, h.back}, info, path)
	}, h
}

// Whoever waits for a file system that does not answer can be interrupted, and closes what he has opened.
func TestHangingFileIsAbandoned(t *testing.T) {
	open, h := hang(t)
	b := open()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := b.Section(ctx, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-h.reading
		cancel()
	}()
	if _, err := r.Read(make([]byte, 10)); !errors.Is(err, context.Canceled) {
		t.Errorf("section: %v", err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-h.reading
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	if _, err := b.ReadAt(make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt of a blob that is closed meanwhile: %v", err)
	}
	<-closed
	close(h.back)
	allBack(t)
}

// Whoever has all the time in the world is told too: others want his place.
func TestHangingFileIsUnavailable(t *testing.T) {
	open, h := hang(t)
	b := open()
	b.limit = 20 * time.Millisecond
	if _, err := b.ReadAt(make([]byte, 10), 0); !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	close(h.back)
	allBack(t)
	closing(t, b)
}

// A few reads may hang for ever. What comes later is refused, files on other file systems too, until some are back.
func TestHangingFilesAreBounded(t *testing.T) {
	open, h := hang(t)
	var hung sync.WaitGroup
	var blobs []*fileBlob
	for range maxAbandoned {
		ctx, cancel := context.WithCancel(t.Context())
		b := open()
		blobs = append(blobs, b)
		r, err := b.Section(ctx, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		hung.Go(func() {
			if _, err := r.Read(make([]byte, 10)); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		})
		<-h.reading
		cancel()
	}
	hung.Wait()
	sound := filepath.Join(t.TempDir(), "sound.tar")
	if err := os.WriteFile(sound, []byte("sound"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(t.Context(), sound); !errors.Is(err, ErrUnavailable) {
		t.Errorf("open: %v", err)
	}
	if _, err := OpenUnder(t.Context(), filepath.Dir(sound), "sound.tar"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("open below a directory: %v", err)
	}
	if _, err := blobs[0].ReadAt(make([]byte, 10), 0); !errors.Is(err, ErrUnavailable) {
		t.Errorf("read: %v", err)
	}
	close(h.back)
	allBack(t)
	b, err := OpenFile(t.Context(), sound)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := b.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) || string(got) != "sound" {
		t.Errorf("read %q, %v", got, err)
	}
	closing(t, append(blobs, b.(*fileBlob))...)
}

func closing(t *testing.T, blobs ...*fileBlob) {
	t.Helper()
	for _, b := range blobs {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Opening hangs as well: here a named pipe without a writer.
func TestHangingOpenIsAbandoned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := OpenFile(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0) // waits for the reader, who ends
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	allBack(t)
}

func allBack(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); abandoned.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d calls are abandoned", abandoned.Load())
		}
	}
}
