// Package v1alpha1 is the API of tarlift.dev: an ImageArchive says which images must be on which nodes, a
// NodeImageState says what one node has of them.
//
// +kubebuilder:object:generate=true
// +groupName=tarlift.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	// GroupVersion of every kind in this package.
	GroupVersion = schema.GroupVersion{Group: "tarlift.dev", Version: "v1alpha1"}
	// SchemeGroupVersion is the name that generated apply configurations know it by.
	SchemeGroupVersion = GroupVersion

	schemeBuilder = runtime.NewSchemeBuilder(func(s *runtime.Scheme) error {
		s.AddKnownTypes(GroupVersion, &ImageArchive{}, &ImageArchiveList{}, &NodeImageState{}, &NodeImageStateList{})
		metav1.AddToGroupVersion(s, GroupVersion)
		return nil
	})
	// AddToScheme makes a scheme know the kinds of this package.
	AddToScheme = schemeBuilder.AddToScheme
)
