package node

import (
	"net/http"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/object"
)

// Cache is what the manager of a Reconciler may cache: the node's own objects, and of the other nodes
// nothing. Thousands of agents share an API server.
func Cache(nodeName string) cache.Options {
	own := cache.ByObject{Field: fields.OneTermEqualSelector(metav1.ObjectNameField, nodeName)}
	return cache.Options{
		ReaderFailOnMissingInformer: true,
		DefaultTransform:            cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.ImageArchive{}:   {},
			&v1alpha1.NodeImageState{}: own,
			object.NodeMetadata():      own,
		},
	}
}

// Kinds are all that a Reconciler asks an API server for, as its manager needs them. Otherwise the manager would ask when it is
// made, and fail while the API server is away; and thousands of agents would ask what never changes.
func Kinds(*rest.Config, *http.Client) (meta.RESTMapper, error) {
	m := meta.NewDefaultRESTMapper(nil)
	m.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	m.Add(v1alpha1.GroupVersion.WithKind("ImageArchive"), meta.RESTScopeRoot)
	m.Add(v1alpha1.GroupVersion.WithKind("NodeImageState"), meta.RESTScopeRoot)
	m.Add(corev1.SchemeGroupVersion.WithKind("Secret"), meta.RESTScopeNamespace)
	m.Add(eventsv1.SchemeGroupVersion.WithKind("Event"), meta.RESTScopeNamespace)
	return m, nil
}
