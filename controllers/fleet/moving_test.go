package fleet

import (
	"context"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	v1alpha1ac "github.com/tarlift/tarlift/api/v1alpha1/applyconfiguration/api/v1alpha1"
)

// oneArchive is a cluster with one ImageArchive, or none, whose status is shown as soon as it is written.
type oneArchive struct {
	client.Client
	archive *v1alpha1.ImageArchive
	nodes   []metav1.PartialObjectMetadata
	states  map[string]*v1alpha1.NodeImageState
	writes  int
}

func (c *oneArchive) Get(_ context.Context, key client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	if c.archive == nil {
		return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
	}
	c.archive.DeepCopyInto(o.(*v1alpha1.ImageArchive))
	return nil
}

func (c *oneArchive) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	switch list := list.(type) {
	case *metav1.PartialObjectMetadataList:
		list.Items = c.nodes
	case *v1alpha1.NodeImageStateList:
		for _, s := range c.states {
			list.Items = append(list.Items, *s)
		}
	}
	return nil
}

func (c *oneArchive) Status() client.SubResourceWriter { return statusWriter{of: c} }

type statusWriter struct {
	client.SubResourceWriter
	of *oneArchive
}

func (c statusWriter) Apply(_ context.Context, o runtime.ApplyConfiguration, _ ...client.SubResourceApplyOption) error {
	c.of.writes++
	c.of.archive.Status = v1alpha1.ImageArchiveStatus{}
	return convert(o.(*v1alpha1ac.ImageArchiveApplyConfiguration).Status, &c.of.archive.Status)
}

// An archive has its part in what several share from when its counts move until they are written, or it is gone.
func TestCountsThatMove(t *testing.T) {
	const others = 1999 // nodes: with so many, counts may wait for longer than until the next look
	now, c := epoch, &oneArchive{archive: newArchive("a", 0)}
	says := func(s saying) { c.nodes, c.states = cluster(append(make([]saying, others), s)...) }
	says(nil)
	r := &Reconciler{
		Client: c, Recorder: events.NewFakeRecorder(10), metrics: newFleetMetrics(nil), now: func() time.Time { return now },
		archives: map[string]*knownArchive{},
	}
	r.admissions = newAdmissions(nil, nil, r.now)
	expect := func(why string, writes, moving int) {
		t.Helper()
		now = now.Add(time.Second)
		result, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "a"}})
		if err != nil || c.writes != writes || r.moving() != moving {
			t.Fatalf("%s: %d writes, %d move (%v); want %d and %d", why, c.writes, r.moving(), err, writes, moving)
		}
		if result.RequeueAfter > rollUpInterval {
			t.Errorf("%s: looked at again in %s", why, result.RequeueAfter)
		}
	}
	expect("the first status", 1, 1)
	expect("it is written", 1, 0)
	says(saysImporting)
	expect("an import has begun", 1, 1)
	now = now.Add((others + 1) * time.Second / rollUpRate)
	expect("long enough after the last write", 2, 1)
	expect("it is written", 2, 0)
	says(saysPending)
	expect("the import has ended", 2, 1)
	c.archive = nil
	expect("the archive is gone", 2, 0)
}
