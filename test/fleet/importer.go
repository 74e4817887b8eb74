package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// fakeImporter is a containerd that has at once whatever is imported. Of a source on a server it reads all first, so
// that an import takes as long as the server wants.
type fakeImporter struct {
	mu       sync.Mutex
	imported map[string]importer.Result // by UID and hash of the spec
}

func newFakeImporter() *fakeImporter {
	return &fakeImporter{imported: map[string]importer.Result{}}
}

func (*fakeImporter) Runtime(context.Context) (importer.Runtime, error) {
	return importer.Runtime{Version: "v2.4.2", Snapshotter: "overlayfs", Platform: "linux/amd64"}, nil
}

func (f *fakeImporter) Imported(_ context.Context, o importer.Owner) (r importer.Result, loss string, found bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, found = f.imported[o.UID+o.SpecHash]
	return r, "", found, nil
}

func (*fakeImporter) Repair(context.Context, importer.Owner) (int, error) { return 0, nil }

func (f *fakeImporter) Import(ctx context.Context, b source.Blob, r importer.Request) (importer.Result, error) {
	if b.Remote() {
		r.Progress(importer.Progress{Phase: importer.PhaseTransferring, Total: imageBytes})
		body, err := b.Section(ctx, 0, -1)
		if err != nil {
			return importer.Result{}, err
		}
		defer body.Close()
		if _, err := io.Copy(io.Discard, body); err != nil {
			return importer.Result{}, fmt.Errorf("read: %w", err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	result := resultOf(r.Owner)
	f.imported[r.Owner.UID+r.Owner.SpecHash] = result
	return result, nil
}

const (
	imagesEach = 10
	imageBytes = 20 << 30
)

// resultOf has everything that a NodeImageState can tell, so that its size is an honest one. It is the same on every
// node.
func resultOf(o importer.Owner) importer.Result {
	r := importer.Result{
		Digest: digest.FromString(o.UID), IndexDigest: digest.FromString(o.UID + "index"), Size: imageBytes,
		Bytes: importer.Bytes{Read: imageBytes - 1, Written: imageBytes / 2, Skipped: imageBytes / 2},
	}
	for i := range imagesEach {
		name := fmt.Sprintf("docker.io/%s:%d", strings.ToLower(o.Name), i)
		r.Images, r.Names = append(r.Images, importer.Image{Name: name, Digest: digest.FromString(name)}), append(r.Names, name)
	}
	return r
}

func (*fakeImporter) Release(context.Context, string) error { return nil }

func (*fakeImporter) Sweep(context.Context, []importer.Owner, func(string) bool) ([]importer.Released, error) {
	return nil, nil
}

// Watch has nothing to tell: nobody touches these images.
func (*fakeImporter) Watch(ctx context.Context, _ func(name string)) error {
	<-ctx.Done()
	return nil
}
