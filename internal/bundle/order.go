package bundle

import (
	"slices"

	"github.com/opencontainers/go-digest"
)

// stack is a layer and the images' layers that lie on it.
type stack struct {
	layer
	above []*stack
	at    map[digest.Digest]*stack
}

// put lays the rest of an image's layers on s.
func (s *stack) put(layers []layer) {
	for _, l := range layers {
		next, ok := s.at[l.Digest]
		if !ok {
			next = &stack{layer: l}
			if s.at == nil {
				s.at = map[digest.Digest]*stack{}
			}
			s.at[l.Digest] = next
			s.above = append(s.above, next)
		}
		s = next
	}
}

// each visits what lies on s: a layer, all that is above it, and then its neighbour.
func (s *stack) each(visit func(layer)) {
	for _, a := range s.above {
		visit(a.layer)
		a.each(visit)
	}
}

// orderLayers gives each layer once. A node takes one platform: each has a part of its own. Images that begin with the
// same layers follow each other, those layers first: they are read in one go, and unpacked while the next ones arrive.
//
// A blob that is among the documents too, such as the empty JSON object of artifacts, is written there.
func orderLayers(list []named, documents []document) []layer {
	var parts []string
	byPlatform := map[string]*stack{}
	var others []layer
	for _, n := range list {
		for _, l := range n.image.leaves {
			s, ok := byPlatform[l.platform]
			if !ok {
				s = &stack{}
				byPlatform[l.platform] = s
				parts = append(parts, l.platform)
			}
			s.put(l.layers)
		}
		for _, o := range n.image.others {
			others = append(others, o.layers...)
		}
	}
	slices.Sort(parts)
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
	for _, p := range parts {
		byPlatform[p].each(add)
	}
	for _, l := range others {
		add(l)
	}
	return out
}
