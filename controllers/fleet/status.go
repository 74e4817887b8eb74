package fleet

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

const (
	controllerFieldOwner = client.FieldOwner("tarlift-controller")
	// wakeRate is how many agents a second the writes of counts may wake, over all archives: every agent sees every write.
	wakeRate = 500
	// fewNodes is below how many nodes counts are written once a second.
	fewNodes = 50
	// countInterval is the least time between two writes of counts for more nodes; for more than a thousand it grows.
	countInterval = 10 * time.Second
)

// writeStatus writes a status that has changed, as soon as it may. Until then it returns how long that takes.
func (r *Reconciler) writeStatus(
	ctx context.Context, a *v1alpha1.ImageArchive, status *v1alpha1.ImageArchiveStatus, m *archiveMemory, nodes int,
) (wait time.Duration, err error) {
	if equality.Semantic.DeepEqual(&a.Status, status) {
		m.due = time.Time{}
		return 0, nil
	}
	if !urgent(&a.Status, status) {
		if wait := r.statusWait(status, m, nodes); wait > 0 {
			return wait, nil
		}
	}
	// The resource version keeps the write from a later archive of the same name.
	patch := client.MergeFromWithOptions(a, client.MergeFromWithOptimisticLock{})
	written := a.DeepCopy()
	written.Status = *status.DeepCopy()
	err = r.Client.Status().Patch(ctx, written, patch, controllerFieldOwner)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return 0, nil // changed meanwhile: that event brings what is next
	}
	if err != nil {
		return 0, fmt.Errorf("write status of ImageArchive %s: %w", a.Name, err)
	}
	m.written, m.when, m.due = written, r.now(), time.Time{}
	r.emitEvents(a, status, m)
	return 0, nil
}

// urgent says whether a status does not wait: one that becomes ready or stalled, or is about another generation.
func urgent(before, after *v1alpha1.ImageArchiveStatus) bool {
	becomes := func(typ string) bool {
		return meta.IsStatusConditionTrue(after.Conditions, typ) && !meta.IsStatusConditionTrue(before.Conditions, typ)
	}
	return becomes(v1alpha1.ConditionReady) || becomes(v1alpha1.ConditionStalled) || before.ObservedGeneration != after.ObservedGeneration
}

// statusWait is how long the counts of an archive wait. Each archive that has to wait has a place of its own in the rate that
// all share.
func (r *Reconciler) statusWait(status *v1alpha1.ImageArchiveStatus, m *archiveMemory, nodes int) time.Duration {
	now := r.now()
	if m.due.IsZero() {
		interval := time.Second
		if desired := status.Nodes.Desired; desired >= fewNodes {
			interval = max(countInterval, time.Duration(desired)*time.Second/100)
		}
		m.due = m.when.Add(interval)
		if m.due.Before(r.nextWrite) {
			m.due = r.nextWrite
		}
		if r.nextWrite.Before(now) {
			r.nextWrite = now
		}
		r.nextWrite = r.nextWrite.Add(time.Duration(nodes) * time.Second / wakeRate)
	}
	return m.due.Sub(now)
}

// emitEvents tells by Events that an archive has become ready or stalled, and of the first failure of each reason.
func (r *Reconciler) emitEvents(a *v1alpha1.ImageArchive, status *v1alpha1.ImageArchiveStatus, m *archiveMemory) {
	const action = "Aggregate"
	became := func(typ string) bool {
		return meta.IsStatusConditionTrue(status.Conditions, typ) && !meta.IsStatusConditionTrue(a.Status.Conditions, typ)
	}
	warn := func(reason, note string) {
		m.warned.Insert(reason)
		r.Recorder.Eventf(a, nil, corev1.EventTypeWarning, reason, action, "%s", condition.Clip(note))
	}
	ready := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady)
	switch {
	case became(v1alpha1.ConditionReady):
		note := fmt.Sprintf("%s: %s", condition.Count(int(status.ImageCount), "image"), ready.Message)
		if x := status.Artifact; x != nil && x.Size > 0 {
			note += ", from an archive of " + x.DisplaySize
		}
		r.Recorder.Eventf(a, nil, corev1.EventTypeNormal, v1alpha1.ReasonImported, action, "%s", note)
	case became(v1alpha1.ConditionStalled), ready.Reason == v1alpha1.ReasonNoNodesSelected && !m.warned.Has(ready.Reason):
		warn(ready.Reason, ready.Message)
	}
	for _, f := range status.Failures {
		if !m.warned.Has(f.Reason) {
			warn(f.Reason, f.Node+": "+f.Message)
		}
	}
}
