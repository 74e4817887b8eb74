// Package inprocess is containerd's own content store and metadata database in the process of a test: what a node has but
// for the snapshotter, in milliseconds.
package inprocess

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Containerd has the services of a containerd.
type Containerd struct {
	Root       string // where the content store has its files: blobs/ and ingest/
	DB         *metadata.DB
	Content    content.Store
	Images     images.Store
	Leases     leases.Manager
	Containers containers.Store
}

// New makes an empty one, until t ends.
func New(t testing.TB) *Containerd {
	t.Helper()
	return NewWith(t, nil)
}

// NewWith makes one that has these snapshotters; DB.Snapshotter(name) is what its clients see of one.
func NewWith(t testing.TB, snapshotters map[string]snapshots.Snapshotter) *Containerd {
	t.Helper()
	dir := memoryDir(t)
	store, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	bdb, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bdb.Close() })
	db := metadata.NewDB(bdb, store, snapshotters)
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &Containerd{
		Root: filepath.Join(dir, "content"), DB: db, Content: db.ContentStore(), Images: metadata.NewImageStore(db),
		Leases: Leases(db), Containers: metadata.NewContainerStore(db),
	}
}

// Collect collects garbage.
func (c *Containerd) Collect(t testing.TB) {
	t.Helper()
	if _, err := c.DB.GarbageCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Leases are those of a database, as a client sees them.
func Leases(db *metadata.DB) leases.Manager { return collecting{metadata.NewLeaseManager(db), db} }

// collecting deletes leases the way the daemon's service does: a synchronous deletion collects garbage first.
type collecting struct {
	leases.Manager
	db *metadata.DB
}

func (c collecting) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	if err := c.Manager.Delete(ctx, l, opts...); err != nil {
		return err
	}
	_, err := c.db.GarbageCollect(ctx)
	return err
}

// memoryDir is a directory in memory, where the machine has room for that: a content store syncs each blob, and these
// tests make thousands of small ones. They take 40 MiB at a time; a container has 64 MiB there by default.
func memoryDir(t testing.TB) string {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &s); err != nil || int64(s.Bavail)*s.Bsize < 256<<20 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "tarlift-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
