package fleet

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/object"
)

// orphanReconciler deletes NodeImageStates whose Node is gone. The garbage collector does so, too, but does not run in
// every cluster, and the agent on a new Node of the same name waits for it.
type orphanReconciler struct {
	cached client.Client
	live   client.Reader
}

func (r *orphanReconciler) setup(mgr ctrl.Manager) error {
	err := ctrl.NewControllerManagedBy(mgr).
		Named("nodeimagestate").
		// A NodeImageState belongs to the same Node whatever it reports.
		For(&v1alpha1.NodeImageState{}, builder.WithPredicates(object.Recreated)).
		WatchesMetadata(&corev1.Node{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(object.Recreated)).
		WithOptions(controller.Options{RateLimiter: object.RateLimiter()}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the controller of NodeImageStates: %w", err)
	}
	return nil
}

// Reconcile deletes one NodeImageState if there is no Node that it belongs to. A cache may not show a new Node yet, so
// the API server is asked first.
func (r *orphanReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var state v1alpha1.NodeImageState
	if err := r.cached.Get(ctx, req.NamespacedName, &state); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	node := object.NodeMetadata()
	switch err := r.cached.Get(ctx, req.NamespacedName, node); {
	case err == nil && state.BelongsTo(node):
		return ctrl.Result{}, nil
	case client.IgnoreNotFound(err) != nil:
		return ctrl.Result{}, err
	}
	var nodes metav1.PartialObjectMetadataList
	nodes.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NodeList"))
	if err := r.live.List(ctx, &nodes, client.MatchingFields{metav1.ObjectNameField: req.Name}); err != nil {
		return ctrl.Result{}, fmt.Errorf("list node %s: %w", req.Name, err)
	}
	if len(nodes.Items) > 0 && state.BelongsTo(&nodes.Items[0]) {
		return ctrl.Result{}, nil
	}
	err := r.cached.Delete(ctx, &state, client.Preconditions{UID: &state.UID})
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("delete NodeImageState %s of a Node that is gone: %w", req.Name, err)
	}
	ctrl.LoggerFrom(ctx).Info("Deleted the NodeImageState of a Node that is gone", "node", req.Name)
	return ctrl.Result{}, nil
}
