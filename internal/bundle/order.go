package bundle

import (
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

// node is a layer and the layers that images have above it.
type node struct {
	layer
	above    []*node
	byDigest map[digest.Digest]*node
}

// add adds an image's layers above n.
func (n *node) add(layers []layer) {
	for _, l := range layers {
		next, ok := n.byDigest[l.Digest]
		if !ok {
			next = &node{layer: l, byDigest: map[digest.Digest]*node{}}
			n.byDigest[l.Digest] = next
			n.above = append(n.above, next)
		}
		n = next
	}
}

// each visits the layers above n depth-first.
func (n *node) each(visit func(layer)) {
	for _, a := range n.above {
		visit(a.layer)
		a.each(visit)
	}
}

// orderLayers returns each layer once. Layers are grouped by platform, since a node takes one. Images that begin with the
// same layers follow each other, shared layers first: they are read in one go, and unpacked while the next layers arrive.
//
// A blob that is also among the documents, such as the empty JSON object of artifacts, is written there only.
func orderLayers(list []named, documents []document) []layer {
	trees := map[string]*node{} // by platform
	var others []layer
	for _, n := range list {
		for _, m := range n.image.platforms {
			if trees[m.platform] == nil {
				trees[m.platform] = &node{byDigest: map[digest.Digest]*node{}}
			}
			trees[m.platform].add(m.layers)
		}
		for _, m := range n.image.attestations {
			others = append(others, m.layers...)
		}
	}
	var out []layer
	seen := map[digest.Digest]bool{}
	for _, d := range documents {
		seen[d.digest] = true
	}
	add := func(l layer) {
		if !seen[l.Digest] {
			seen[l.Digest] = true
			out = append(out, l)
		}
	}
	for _, platform := range slices.Sorted(maps.Keys(trees)) {
		trees[platform].each(add)
	}
	for _, l := range others {
		add(l)
	}
	return out
}
