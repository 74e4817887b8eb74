package fleet

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// Cache is what the manager of an Reconciler may cache: all ImageArchives and NodeImageStates, and of
// Nodes the metadata. Of the latter two, of which there are thousands, only what is counted.
func Cache() cache.Options {
	kept := &texts{known: map[string]string{}}
	return cache.Options{
		ReaderFailOnMissingInformer: true,
		DefaultTransform:            cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.NodeImageState{}: {Transform: func(o any) (any, error) {
				if state, ok := o.(*v1alpha1.NodeImageState); ok {
					kept.thinState(state)
				}
				return o, nil
			}},
			nodeMetadata(): {Transform: func(o any) (any, error) {
				if node, ok := o.(*metav1.PartialObjectMetadata); ok {
					kept.thinNode(node)
				}
				return o, nil
			}},
		},
	}
}

// texts keeps one copy of each text that thousands of objects have in common.
type texts struct {
	mu    sync.Mutex
	known map[string]string
}

// maxTexts bounds what is remembered of texts. The names and digests of all archives of a large cluster are some
// hundred; what is forgotten only takes its space again.
const maxTexts = 10_000

func (k *texts) one(text *string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if same, ok := k.known[*text]; ok {
		*text = same
		return
	}
	if len(k.known) >= maxTexts {
		clear(k.known)
	}
	k.known[*text] = *text
}

// thinState leaves of a NodeImageState what the roll-up and rollouts read. It may get the same object twice.
func (k *texts) thinState(s *v1alpha1.NodeImageState) {
	s.Labels, s.Annotations, s.Status.Containerd, s.Status.Summary = nil, nil, nil, ""
	s.Kind, s.APIVersion = "", ""
	k.thinManagedFields(s)
	for i := range s.OwnerReferences {
		o := &s.OwnerReferences[i]
		k.one(&o.APIVersion)
		k.one(&o.Kind)
		o.Name, o.Controller, o.BlockOwnerDeletion = "", nil, nil
	}
	for i := range s.Spec.Admitted {
		x := &s.Spec.Admitted[i]
		k.one(&x.Archive)
		k.one((*string)(&x.UID))
	}
	for i := range s.Status.Archives {
		k.thinEntry(&s.Status.Archives[i])
	}
}

func (k *texts) thinEntry(e *v1alpha1.ArchiveState) {
	e.StartTime, e.CompletionTime = nil, nil
	for _, text := range []*string{&e.Name, (*string)(&e.UID), &e.Digest, &e.IndexDigest} {
		k.one(text)
	}
	ready := condition.IsTrue(e.Conditions, v1alpha1.ConditionReady)
	if ready {
		e.Bytes = nil
	}
	for i := range e.Conditions {
		c := &e.Conditions[i]
		if c.Type == v1alpha1.ConditionReady || e.LastError != nil {
			c.Message = "" // what failed, LastError tells
		}
		c.Message = condition.ClipTo(c.Message, condition.MaxSample)
		for _, text := range []*string{&c.Type, (*string)(&c.Status), &c.Reason, &c.Message} {
			k.one(text)
		}
	}
	if e.LastError != nil {
		e.LastError.Message = condition.ClipTo(e.LastError.Message, condition.MaxSample)
		k.one(&e.LastError.Reason)
		k.one(&e.LastError.Message)
	}
}

// thinManagedFields leaves when the status was last written; the API server notes that by its own clock.
func (k *texts) thinManagedFields(s *v1alpha1.NodeImageState) {
	last := reportTime(s)
	s.ManagedFields = nil
	if !last.IsZero() {
		s.ManagedFields = []metav1.ManagedFieldsEntry{{Subresource: "status", Time: &metav1.Time{Time: last}}}
	}
}

// thinNode leaves a Node's name, UID and labels.
func (k *texts) thinNode(n *metav1.PartialObjectMetadata) {
	n.Annotations, n.ManagedFields, n.OwnerReferences, n.Finalizers = nil, nil, nil, nil
	labels := make(map[string]string, len(n.Labels))
	for key, value := range n.Labels {
		k.one(&key)
		k.one(&value)
		labels[key] = value
	}
	n.Labels = labels
}

// nodeMetadata is an empty Node of which only metadata is read.
func nodeMetadata() *metav1.PartialObjectMetadata {
	node := &metav1.PartialObjectMetadata{}
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	return node
}

// newer says whether a is later than b. Where that cannot be said, a is taken for later.
func newer(a, b string) bool {
	c, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil || c > 0
}
