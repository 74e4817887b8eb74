package controllers

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// NodeCache is what the manager of a NodeReconciler may cache: the node's own objects, and of the other nodes
// nothing. Thousands of agents share an API server.
func NodeCache(nodeName string) cache.Options {
	own := cache.ByObject{Field: fields.OneTermEqualSelector(metav1.ObjectNameField, nodeName)}
	return cache.Options{
		ReaderFailOnMissingInformer: true,
		DefaultTransform:            cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.ImageArchive{}:   {},
			&v1alpha1.NodeImageState{}: own,
			nodeMetadata():             own,
		},
	}
}

// ArchiveCache is what the manager of an ArchiveReconciler may cache: all ImageArchives and NodeImageStates, and of
// Nodes the metadata.
func ArchiveCache() cache.Options {
	return cache.Options{
		ReaderFailOnMissingInformer: true,
		DefaultTransform:            cache.TransformStripManagedFields(),
	}
}

// nodeMetadata is an empty Node of which only metadata is read.
func nodeMetadata() *metav1.PartialObjectMetadata {
	node := &metav1.PartialObjectMetadata{}
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	return node
}
