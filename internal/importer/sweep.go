package importer

import (
	"context"
)

// Swept is what became of the images of an owner whose claim ended.
type Swept struct {
	Owner    Owner
	Retained []string // names that stay as they are, for others too
	Unpinned []string // that stay until the kubelet wants their room
	Deleted  []string
	InUse    []string // that were to be deleted, but are unpinned: containers use them
}

// Sweep ends the claims of all owners that are not among the wanted ones, told apart by UID.
func (i *Importer) Sweep(ctx context.Context, wanted []Owner) ([]Swept, error) {
	return nil, ctx.Err()
}
