// Package object has what both the node's agent and the fleet's controller know of the API server's objects: which of their
// changes matter, which of two is newer, and how soon to try again.
package object

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
)

// retryBase is the wait after a failed call of the API server.
const retryBase = 500 * time.Millisecond

// RetryLimit bounds the growing waits after further failures.
const RetryLimit = 5 * time.Second

// RateLimiter is that of a controller whose calls of the API server fail.
func RateLimiter() workqueue.TypedRateLimiter[ctrl.Request] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[ctrl.Request](retryBase, RetryLimit)
}

// NodeChanged leaves out what the kubelet writes all the time.
var NodeChanged = predicate.Or(predicate.LabelChangedPredicate{}, Recreated)

// Recreated is for objects that were deleted and created again while a watch was down: that arrives as one update.
var Recreated = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool { return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() },
}

// NodeMetadata is an empty Node of which only metadata is read.
func NodeMetadata() *metav1.PartialObjectMetadata {
	node := &metav1.PartialObjectMetadata{}
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	return node
}

// Newer says whether resource version a is later than b. Where that cannot be said, a is taken for later.
func Newer(a, b string) bool {
	c, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil || c > 0
}
