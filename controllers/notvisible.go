package controllers

import (
	"strings"

	"github.com/tarlift/tarlift/internal/importer"
)

// eventUnseen is the reason of an Event about images that are there, but not for the kubelet.
const eventUnseen = "NotVisible"

// maxUnseen names are told in an Event, which has 1024 characters.
const maxUnseen = 3

// unseenText says which names of an import the kubelet would not find, or why that is not known; empty if it finds all.
func unseenText(r importer.Result) string {
	switch {
	case r.CRI != "":
		return "whether the kubelet finds the images is not known: " + clip(r.CRI)
	case len(r.Unseen) > maxUnseen:
		return "the kubelet does not find " + count(len(r.Unseen), "name") + ": " + strings.Join(r.Unseen[:maxUnseen], ", ") + " and others"
	case len(r.Unseen) > 0:
		return "the kubelet does not find " + count(len(r.Unseen), "name") + ": " + strings.Join(r.Unseen, ", ")
	}
	return ""
}
