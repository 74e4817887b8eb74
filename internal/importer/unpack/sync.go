package unpack

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// keyedLocks are mutexes by key. They implement containerd's KeyedLocker. A key is remembered for as long as they are.
type keyedLocks struct{ held sync.Map }

// Lock waits until nobody holds the key.
func (k *keyedLocks) Lock(ctx context.Context, key string) error {
	lock, _ := k.held.LoadOrStore(key, make(chan struct{}, 1))
	select {
	case lock.(chan struct{}) <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller's own
	}
}

// Unlock lets go of a key that is held.
func (k *keyedLocks) Unlock(key string) {
	lock, _ := k.held.Load(key)
	<-lock.(chan struct{})
}

// ReadySet is a set of digests that can be waited for. The zero ReadySet is empty.
type ReadySet struct{ digests sync.Map }

type latch struct {
	once  sync.Once
	ready chan struct{} // closed when it is
}

func (r *ReadySet) latch(d digest.Digest) *latch {
	l, _ := r.digests.LoadOrStore(d, &latch{ready: make(chan struct{})})
	return l.(*latch)
}

// Add says that a digest is ready. A digest may be added again.
func (r *ReadySet) Add(d digest.Digest) {
	l := r.latch(d)
	l.once.Do(func() { close(l.ready) })
}

// Wait returns when a digest is ready, or with the context's error.
func (r *ReadySet) Wait(ctx context.Context, d digest.Digest) error {
	select {
	case <-r.latch(d).ready:
		return nil
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller's own
	}
}
