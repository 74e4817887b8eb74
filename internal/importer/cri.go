package importer

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/importer/cri"
)

// CRI is what the CRI of a containerd says of itself.
type CRI = cri.Status

// CRI asks the CRI on containerd's socket.
func (i *Importer) CRI(ctx context.Context) (CRI, error) { return i.cri.Status(ctx) }

// notVisible asks CRI for published names. What other namespaces hold is not meant for the kubelet.
func (i *Importer) notVisible(ctx context.Context, ids map[string]digest.Digest) (names []string, unknown string) {
	if i.namespace != cri.Namespace {
		return nil, ""
	}
	return i.cri.NotVisible(ctx, ids)
}
