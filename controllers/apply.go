package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

const (
	nodeFieldOwner       = client.FieldOwner("tarlift-node")
	controllerFieldOwner = client.FieldOwner("tarlift-controller")
)

// cacheLag is how long a cache may take to show an object after its creation.
const cacheLag = 2 * time.Second

// writtenState is what this process has written to its NodeImageState. The cache shows it a little later, and
// until then comparing with the cache would write it again.
type writtenState struct {
	uid             types.UID
	resourceVersion string
	status          *v1alpha1.NodeImageStateStatus
	when            time.Time
}

// latest is the status as the API server has it, or how long to wait until the cache can tell.
func (w *writtenState) latest(view *nodeView, now time.Time) (*v1alpha1.NodeImageStateStatus, time.Duration) {
	switch {
	case view.state == nil && w.status != nil && now.Sub(w.when) < cacheLag:
		return nil, cacheLag
	case view.state == nil:
		return &v1alpha1.NodeImageStateStatus{}, 0
	case w.status != nil && w.uid == view.state.UID && !newer(view.state.ResourceVersion, w.resourceVersion):
		return w.status, 0
	}
	return &view.state.Status, 0
}

// newer says whether a is later than b. Where that cannot be said, a is taken for later.
func newer(a, b string) bool {
	c, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil || c > 0
}

// write replaces the status, after creating the object where there is none. It belongs to the Node, so that it goes
// with it. What it returns is the object as the API server has it then. It is a JSON patch since only this agent writes
// a status: an API server takes several times as long for server-side apply, of a report of 20 archives some 40 ms.
func (w *writtenState) write(ctx context.Context, c client.Client, view *nodeView, status *v1alpha1.NodeImageStateStatus, now time.Time) (*v1alpha1.NodeImageState, error) {
	name := view.node.Name
	if view.state == nil {
		err := c.Create(ctx, &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{
			Name:            name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: view.node.UID}},
		}})
		if client.IgnoreAlreadyExists(err) != nil {
			return nil, err
		}
	}
	patch, err := json.Marshal([]map[string]any{{"op": "add", "path": "/status", "value": status}})
	if err != nil {
		return nil, fmt.Errorf("encode the status: %w", err)
	}
	object := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := c.Status().Patch(ctx, object, client.RawPatch(types.JSONPatchType, patch), nodeFieldOwner); err != nil {
		return nil, err
	}
	w.uid, w.resourceVersion = object.UID, object.ResourceVersion
	w.status, w.when = status, now
	return object, nil
}

// convert makes an apply configuration of a part of an object, or that of it: both have the same JSON.
func convert(from, to any) error {
	b, err := json.Marshal(from)
	if err != nil {
		return fmt.Errorf("encode %T: %w", from, err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("encode %T: %w", from, err)
	}
	return nil
}
