package node

import (
	"strings"

	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

// eventNotVisible is the reason of an Event about images that are there, but not for the kubelet.
const eventNotVisible = "NotVisible"

// maxNotVisible names are told in an Event, which has 1024 characters.
const maxNotVisible = 3

// notVisibleText says which names of an import the kubelet would not find, or why that is not known; empty if it finds all.
func notVisibleText(r importer.Result) string {
	if r.CRI != "" {
		return "whether the kubelet finds the images is not known: " + condition.Clip(r.CRI)
	}
	if len(r.NotVisible) == 0 {
		return ""
	}
	names := strings.Join(r.NotVisible[:min(len(r.NotVisible), maxNotVisible)], ", ")
	if len(r.NotVisible) > maxNotVisible {
		names += " and others"
	}
	return "the kubelet does not find " + condition.Count(len(r.NotVisible), "name") + ": " + names
}
