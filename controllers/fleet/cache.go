package fleet

import (
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/controllers/object"
)

// Cache is what the manager of a Reconciler may cache: all ImageArchives and NodeImageStates, and of Nodes the metadata. Of
// the latter two, of which there are thousands, only what is used.
func Cache() cache.Options {
	k := newInterner()
	return cache.Options{
		ReaderFailOnMissingInformer: true,
		DefaultTransform:            cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.NodeImageState{}: {Transform: func(o any) (any, error) {
				if state, ok := o.(*v1alpha1.NodeImageState); ok {
					k.trimState(state)
				}
				return o, nil
			}},
			object.NodeMetadata(): {Transform: func(o any) (any, error) {
				if node, ok := o.(*metav1.PartialObjectMetadata); ok {
					k.trimNode(node)
				}
				return o, nil
			}},
		},
	}
}

// interner keeps one copy of each string that thousands of objects have in common.
type interner struct {
	mu    sync.Mutex
	known map[string]string
}

func newInterner() *interner { return &interner{known: map[string]string{}} }

// maxInterned bounds what is remembered. The names and digests of all archives of a large cluster are some hundred; a
// string that is forgotten only takes its space again.
const maxInterned = 10_000

func (k *interner) intern(texts ...*string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, text := range texts {
		if same, ok := k.known[*text]; ok {
			*text = same
			continue
		}
		if len(k.known) >= maxInterned {
			clear(k.known)
		}
		k.known[*text] = *text
	}
}

// trimState leaves of a NodeImageState what is aggregated and what rollouts use. It may get the same object twice.
func (k *interner) trimState(s *v1alpha1.NodeImageState) {
	s.TypeMeta, s.Labels, s.Annotations, s.ManagedFields = metav1.TypeMeta{}, nil, nil, nil
	s.Status.Containerd, s.Status.Summary, s.Status.AgentVersion = nil, "", ""
	for i := range s.OwnerReferences {
		o := &s.OwnerReferences[i]
		k.intern(&o.APIVersion, &o.Kind)
		o.Name, o.Controller, o.BlockOwnerDeletion = "", nil, nil
	}
	for i := range s.Spec.Admitted {
		x := &s.Spec.Admitted[i]
		k.intern(&x.Archive, (*string)(&x.UID))
	}
	for i := range s.Status.Archives {
		k.trimEntry(&s.Status.Archives[i])
	}
}

func (k *interner) trimEntry(e *v1alpha1.ArchiveState) {
	e.StartTime, e.CompletionTime, e.NextAttemptTime = nil, nil, nil
	k.intern(&e.Name, (*string)(&e.UID), &e.Digest, &e.IndexDigest)
	for i := range e.Images {
		k.intern(&e.Images[i].Name, &e.Images[i].Digest)
	}
	if e.Ready {
		e.Bytes, e.Conditions, e.LastError = nil, nil, nil
	}
	for i := range e.Conditions {
		c := &e.Conditions[i]
		if e.LastError != nil || c.Type == v1alpha1.ConditionReady && c.Reason != v1alpha1.ReasonNotVisible {
			c.Message = "" // what failed is in LastError or Stalled
		}
		c.Message = condition.ClipTo(c.Message, condition.MaxSample)
		k.intern(&c.Type, (*string)(&c.Status), &c.Reason, &c.Message)
	}
	if e.LastError != nil {
		e.LastError.Message = condition.ClipTo(e.LastError.Message, condition.MaxSample)
		k.intern(&e.LastError.Reason, &e.LastError.Message)
	}
}

// trimNode leaves a Node's name, UID and labels.
func (k *interner) trimNode(n *metav1.PartialObjectMetadata) {
	n.Annotations, n.ManagedFields, n.OwnerReferences, n.Finalizers = nil, nil, nil, nil
	labels := make(map[string]string, len(n.Labels))
	for key, value := range n.Labels {
		k.intern(&key, &value)
		labels[key] = value
	}
	n.Labels = labels
}
