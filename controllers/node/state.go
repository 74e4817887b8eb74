package node

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/reason"
)

// archiveState is what the agent knows of one archive, and decides what is to be done about it. It is arithmetic on plain
// values: it reads no clock and calls nobody. What it knows can be built again from the node's own NodeImageState and
// containerd's labels.
type archiveState struct {
	*want
	backoff       // of imports, and of checks that containerd does not answer
	jitter        func() float64
	checkInterval time.Duration // between checks though nothing tells of a change; 0: never

	entry      v1alpha1.ArchiveState // counts, times, digests and conditions, as reported last
	ready      bool                  // the images are there: containerd or, until it was asked, the last report says so
	images     []v1alpha1.Image
	names      []string // that are published, as far as they are known
	failure    *failure // of the last attempt
	notVisible string   // which names the kubelet does not find; empty for none
	waiting    string   // what keeps an import from being queued, in words
	observed   string   // the request to reconcile that was acted on

	checked     time.Time // as of when containerd was asked; zero: not for this spec
	invalidated time.Time // when something was last seen to change in containerd
	nextCheck   time.Time // when to ask without that; zero for never
	leftovers   bool      // what failed attempts have kept is to be released
	releaseAt   time.Time // not before

	missing     string    // what is missing of images that were complete, in words; empty for nothing
	repairTried bool      // what needs no source was tried against that
	healed      time.Time // when images were last complete again
	relapses    int       // how often images were missing again soon after that

	validator string  // of the source that the last attempt read
	stale     bool    // the source has another archive than what was imported
	probe     backoff // of asking the source

	job     *job               // that waits or runs, nil for none
	kind    action             // of the job
	jobHash string             // the spec hash that the job was made for
	running *importer.Progress // of an import that runs, nil for none
	yields  int                // how often the import was cancelled for lack of progress
}

type failure struct {
	v1alpha1.ImportError
	terminal bool
}

// action is what is to be done about an archive next.
type action int

const (
	nothing   action = iota
	release          // what failed attempts have kept
	check            // whether containerd has the images
	repair           // what needs no source, then check
	importing        // from the source
	probing          // whether the source has another archive
	stopping         // the job
)

func newState(w *want, checkInterval time.Duration, jitter func() float64) *archiveState {
	return &archiveState{
		want: w, jitter: jitter, checkInterval: checkInterval, observed: w.requested,
		entry: v1alpha1.ArchiveState{Name: w.name, UID: w.uid, ObservedGeneration: w.generation},
	}
}

// restore takes over what an earlier process reported of the same object. Of another generation only the conditions' times
// are of use. What failed waits before it is tried again, so that an archive that kills the agent does not keep the others
// from their turn.
func (s *archiveState) restore(entry *v1alpha1.ArchiveState, now time.Time) {
	if entry.ObservedGeneration != s.generation {
		s.entry.Conditions = entry.Conditions
		return
	}
	s.entry, s.ready = *entry.DeepCopy(), entry.Ready
	if r := meta.FindStatusCondition(entry.Conditions, v1alpha1.ConditionReady); r != nil && r.Reason == v1alpha1.ReasonDrifted {
		s.missing, _, _ = strings.Cut(r.Message, missingDetail)
	}
	if e := entry.LastError; e != nil {
		s.failure = &failure{*e, meta.IsStatusConditionTrue(entry.Conditions, v1alpha1.ConditionStalled)}
	}
	if !s.ready && entry.Attempts > 0 {
		s.failures = int(entry.Attempts) - 1
		s.failed(now, retryLimit, s.jitter)
	}
}

// update takes over a changed want of the same object. Another spec hash is another import.
func (s *archiveState) update(w *want, now time.Time) {
	before := s.want
	s.want = w
	if before.owner().SpecHash != w.owner().SpecHash {
		leftovers := s.leftovers || !s.ready && s.entry.Attempts > 0
		conditions, job, kind, hash := s.entry.Conditions, s.job, s.kind, s.jobHash
		*s = *newState(w, s.checkInterval, s.jitter)
		s.entry.Conditions, s.leftovers, s.job, s.kind, s.jobHash = conditions, leftovers, job, kind, hash
		s.takeAdmission()
		return
	}
	if w.generation != before.generation {
		s.entry.ObservedGeneration = w.generation
		s.reset()
	}
	if w.interval != before.interval {
		s.scheduleProbe(now)
	}
	s.takeAdmission()
}

// takeAdmission notes a new admission. What failed before says nothing about it, and it is to be used at once.
func (s *archiveState) takeAdmission() {
	switch x := s.admission; {
	case x == nil:
		s.entry.AdmittedTime = nil
	case s.admitted() && (s.entry.AdmittedTime == nil || !s.entry.AdmittedTime.Equal(&x.Time)):
		s.entry.AdmittedTime, s.failure = x.Time.DeepCopy(), nil
		if !s.ready {
			s.reset()
		}
	}
}

// next says what to do now, or how long to wait for something to do; 0 for until something changes.
func (s *archiveState) next(now time.Time) (a action, wait time.Duration) {
	due := func(at time.Time) bool {
		d := at.Sub(now)
		if d > 0 {
			wait = sooner(wait, d)
		}
		return d <= 0
	}
	requested := s.requested != s.observed
	switch {
	case s.job != nil && s.outdated():
		return stopping, 0
	case s.job != nil:
		return nothing, 0
	case s.leftovers && due(s.releaseAt):
		return release, 0
	case requested, s.needsCheck() && due(s.readyAt):
		return check, 0
	case s.needsCheck():
		return nothing, wait
	case s.missing != "" && !s.repairTried && !s.ignoreDrift && !s.suspend && due(s.readyAt):
		return repair, 0
	case (s.ready || s.missing != "" || s.notVisible != "") && !s.nextCheck.IsZero() && due(s.nextCheck):
		return check, 0
	case s.wantsImport() && s.admitted() && due(s.readyAt):
		return importing, 0
	case s.wantsProbe() && due(s.probe.readyAt):
		return probing, 0
	}
	return nothing, wait
}

// needsCheck says whether containerd was not asked since it may have changed.
func (s *archiveState) needsCheck() bool { return s.checked.IsZero() || s.invalidated.After(s.checked) }

// wantsImport says whether an import is to be tried as soon as it is due.
func (s *archiveState) wantsImport() bool {
	heals := s.missing == "" || s.stale || s.repairTried && !s.ignoreDrift
	return !s.ready && s.notVisible == "" && heals && !s.suspend
}

// wantsProbe says whether to ask the source for another archive: in place of one that is complete, unless a digest says
// which one it has to be, or of one that stalls.
func (s *archiveState) wantsProbe() bool {
	if s.interval == 0 || s.suspend {
		return false
	}
	if s.ready {
		return !s.fixed
	}
	return s.failure != nil && s.failure.terminal
}

// outdated says whether the job has lost its purpose. A job of an earlier spec was made with another request.
func (s *archiveState) outdated() bool {
	switch {
	case s.jobHash != s.owner().SpecHash:
		return true
	case s.kind == probing:
		return !s.wantsProbe() || s.requested != s.observed
	}
	return !s.mayContinue()
}

// expected says whether the images are still to come. After a terminal failure, or without room for them, they may not.
func (s *archiveState) expected() bool {
	return !s.ready && (s.failure == nil || !s.failure.terminal && s.failure.Reason != v1alpha1.ReasonInsufficientDisk)
}

// conflictsWith says whether the archive stalls for one of these names. The failure, which may be an earlier process', names
// it in quotes.
func (s *archiveState) conflictsWith(names map[string]time.Time) bool {
	if s.failure == nil || !s.failure.terminal || s.failure.Reason != v1alpha1.ReasonNameConflict {
		return false
	}
	for name := range names {
		if name != "" && strings.Contains(s.failure.Message, strconv.Quote(name)) {
			return true
		}
	}
	return false
}

// invalidate notes what has changed in containerd: names of images, "" for a snapshot, or anything at a time.
func (s *archiveState) invalidate(c changes, now time.Time) {
	at := c.all
	if s.request.Unpack {
		at = later(at, c.names[""])
	}
	for _, name := range s.names {
		at = later(at, c.names[name])
	}
	s.invalidated = later(s.invalidated, at)
	if s.conflictsWith(c.names) {
		s.readyAt = now
	}
}

// started notes that an import begins.
func (s *archiveState) started(now time.Time) {
	s.leftovers = false // the attempt adopts what is left, or releases it by itself
	s.running = &importer.Progress{Phase: importer.PhaseIndexing}
	s.entry.Attempts++
	if s.entry.StartTime == nil {
		s.entry.StartTime = condition.Timestamp(now)
	}
}

// newImport begins another count of attempts.
func (s *archiveState) newImport() {
	e := &s.entry
	*e = v1alpha1.ArchiveState{
		Name: e.Name, UID: e.UID, ObservedGeneration: e.ObservedGeneration, Conditions: e.Conditions, AdmittedTime: e.AdmittedTime,
		Digest: e.Digest, IndexDigest: e.IndexDigest, Size: e.Size, ImageCount: e.ImageCount, CompletionTime: e.CompletionTime,
	}
}

// handleFailure notes a failed check, repair or import. It says whether the failure is new. A containerd that does not answer says
// nothing against images that were there before; once it answers again, it is asked for them first.
func (s *archiveState) handleFailure(err error, repairs bool, now time.Time) bool {
	name, terminal := reason.Classify(err)
	switch {
	case terminal:
		s.stalled(now, s.jitter)
		s.scheduleProbe(now)
		s.leftovers = true
	case name == v1alpha1.ReasonInsufficientDisk:
		s.stalled(now, s.jitter) // each attempt may transfer, and drop, all that fits
	case name == v1alpha1.ReasonRuntimeUnavailable:
		s.failed(now, runtimeRetryLimit, s.jitter)
		s.checked = time.Time{}
	default:
		s.failed(now, retryLimit, s.jitter)
		s.repairTried = s.repairTried || repairs // by an import, then
	}
	if s.ready {
		return false
	}
	failed := failure{v1alpha1.ImportError{Reason: name, Message: condition.ErrorText(err)}, terminal}
	known := s.failure != nil && s.failure.ImportError == failed.ImportError
	s.failure = &failed
	return !known
}

// found is what containerd has of an archive.
type found struct {
	at       time.Time // as of when
	there    bool      // images of the owner
	missing  string    // of them, in words; empty for nothing
	repaired int       // names
	result   importer.Result
}

// handleCheck notes whether containerd has all of an archive's images.
func (s *archiveState) handleCheck(f found, repaired bool, now time.Time) outcome {
	first := s.nextCheck.IsZero()
	s.scheduleCheck(f.at, now)
	if s.failure != nil && s.failure.Reason == v1alpha1.ReasonRuntimeUnavailable {
		s.failure = nil
		if s.entry.Attempts == 0 { // else the import may be what ended containerd
			s.reset()
		}
	}
	switch {
	case !f.there && !s.ready && s.missing == "":
		return eventNone // it never was there
	case !f.there, f.missing != "":
		return s.handleMissing(f, repaired, now)
	case s.stale:
		s.missing, s.repairTried = "", false
		return eventNone
	}
	healed := s.missing != "" && f.repaired > 0
	if !s.ready || s.entry.IndexDigest != string(f.result.IndexDigest) {
		s.complete(f.result, now)
	} else {
		s.take(f.result)
		s.reset()
	}
	if first { // when it was imported is long ago, and many agents may start at a time
		s.probe = backoff{readyAt: now.Add(time.Duration(s.jitter() * float64(s.interval)))}
	}
	if healed {
		return eventHealed
	}
	return eventNone
}

const (
	// relapseTime is how soon after images were complete again somebody who removes them is likely to do it again.
	relapseTime = 10 * time.Minute
	// relapseLimit bounds the wait before what goes missing again and again is repaired: still well within a minute.
	relapseLimit = 30 * time.Second
)

// handleMissing notes that images which were complete are so no more.
func (s *archiveState) handleMissing(f found, repaired bool, now time.Time) outcome {
	text := cmp.Or(f.missing, "none of the images is there")
	known := repaired || s.missing == text
	switch {
	case s.missing == "":
		s.failure, s.repairTried = nil, false
		s.newImport()
		s.reset()
		if s.healed.IsZero() || now.Sub(s.healed) > relapseTime {
			s.relapses = 0
			break
		}
		s.failures = s.relapses
		s.failed(now, relapseLimit, s.jitter)
		s.relapses++
	case !known: // more of it, or something else
		s.repairTried = false
	}
	s.repairTried = s.repairTried || repaired
	s.ready, s.notVisible, s.missing = false, "", text
	names := slices.Concat(s.names, f.result.Names) // of those that are gone only the former tell
	slices.Sort(names)
	s.names = slices.Compact(names)
	if known {
		return eventNone
	}
	return eventDrifted
}

// handleImport notes that the images were imported.
func (s *archiveState) handleImport(r importer.Result, at, now time.Time) outcome {
	healed := s.missing != "" && !s.stale
	s.scheduleCheck(at, now)
	s.complete(r, now)
	s.entry.CompletionTime = condition.Timestamp(now)
	s.scheduleProbe(now)
	if healed {
		return eventHealed
	}
	return eventImported
}

// handleProbe notes whether the source has another archive. That it could not be asked says nothing against images that are
// there.
func (s *archiveState) handleProbe(changed bool, err error, now time.Time) outcome {
	if err != nil {
		s.probe.failed(now, min(retryLimit, s.interval), s.jitter)
		return eventNone
	}
	s.scheduleProbe(now)
	if !changed {
		return eventNone
	}
	s.reset() // what stalls may be worth another attempt now
	if s.ready {
		s.ready, s.stale = false, true
		s.newImport()
	}
	return eventSourceChanged
}

func (s *archiveState) scheduleProbe(now time.Time) {
	s.probe = backoff{readyAt: now.Add(about(s.interval, s.jitter))}
}

// complete notes that the images are there.
func (s *archiveState) complete(r importer.Result, now time.Time) {
	s.failure, s.stale, s.yields, s.waiting = nil, false, 0, ""
	s.reset()
	e := &s.entry
	if e.CompletionTime == nil || e.IndexDigest != string(r.IndexDigest) {
		e.CompletionTime = condition.Timestamp(now)
	}
	if s.missing != "" {
		s.missing, s.repairTried, s.healed = "", false, now
	}
	e.Digest, e.IndexDigest, e.Size = string(r.Digest), string(r.IndexDigest), max(r.Size, 0)
	e.ImageCount = int32(len(r.Images)) //nolint:gosec // bounded by the archive package
	s.take(r)
	if s.notVisible != "" {
		s.nextCheck = now.Add(notVisibleInterval)
	}
}

// scheduleCheck notes that containerd was asked as of at, and when to ask again though nothing tells of a change.
func (s *archiveState) scheduleCheck(at, now time.Time) {
	s.checked = at
	s.nextCheck = now.Add(about(s.checkInterval, s.jitter))
}

// notVisibleInterval is how often the kubelet's view is asked for while it lacks names.
const notVisibleInterval = time.Minute

// take notes which names are published, and whether the kubelet finds them.
func (s *archiveState) take(r importer.Result) {
	s.names, s.validator = r.Names, r.Validator
	s.images = nil
	for _, img := range r.Images[:min(len(r.Images), v1alpha1.MaxImages)] {
		if img.Digest.Validate() != nil || len(img.Name) > v1alpha1.MaxImageName { // the API server would refuse the whole report
			continue
		}
		s.images = append(s.images, v1alpha1.Image{Name: img.Name, Digest: string(img.Digest)})
	}
	s.notVisible = notVisibleText(r.NotVisible)
	s.ready = s.notVisible == ""
}

// maxNotVisible names are listed in a message.
const maxNotVisible = 3

// notVisibleText says which names the kubelet does not find, and what to do; empty if it finds all.
func notVisibleText(names []string) string {
	if len(names) == 0 {
		return ""
	}
	list := strings.Join(names[:min(len(names), maxNotVisible)], ", ")
	if len(names) > maxNotVisible {
		list += " and others"
	}
	return fmt.Sprintf("the kubelet does not find %s: %s; run `agent doctor` on the node, or restart its containerd",
		condition.Count(len(names), "name"), list)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// missingDetail stands in a condition's message between what is missing and what keeps it from being healed.
const missingDetail = "; not healed yet: "

// reported is the entry of the archive in the node's report.
func (s *archiveState) reported(listed []v1alpha1.Image, now time.Time) v1alpha1.ArchiveState {
	e := &s.entry
	if s.ready {
		*e = v1alpha1.ArchiveState{
			Name: e.Name, UID: e.UID, ObservedGeneration: e.ObservedGeneration, Ready: true, AdmittedTime: e.AdmittedTime,
			Digest: e.Digest, IndexDigest: e.IndexDigest, Size: e.Size, ImageCount: e.ImageCount,
			CompletionTime: e.CompletionTime, Attempts: e.Attempts,
		}
		r := *e.DeepCopy()
		if !slices.Equal(s.images, listed) {
			r.Images = s.images
		}
		return r
	}
	e.Ready, e.LastError, e.NextAttemptTime = false, nil, nil
	if s.failure != nil {
		e.LastError = s.failure.DeepCopy()
	}
	if p := s.running; p != nil {
		e.Bytes = &v1alpha1.ArchiveBytes{Total: p.Total, Done: p.Done, Skipped: p.Skipped}
	} else if s.failure != nil && s.job == nil && s.readyAt.After(now) {
		e.NextAttemptTime = condition.Timestamp(s.readyAt)
	}
	e.Conditions = condition.Merge(e.Conditions, s.generation, now, s.conditions()...)
	return *e.DeepCopy()
}

// conditions describe an archive that is not ready. While an attempt that follows a failed one runs, Ready keeps the
// failure: only the attempt's end tells whether that is over, and each retry would cost two writes.
func (s *archiveState) conditions() []metav1.Condition {
	doing := s.reconciling()
	ready := func(reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionReady, metav1.ConditionFalse, reason, condition.Clip(message))
	}
	stalled := func(reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionStalled, metav1.ConditionTrue, reason, condition.Clip(message))
	}
	f := s.failure
	terminal := f != nil && f.terminal
	switch {
	case s.suspend && s.missing != "":
		return []metav1.Condition{ready(v1alpha1.ReasonSuspended, "spec.suspend is set; "+s.missing)}
	case s.suspend:
		return []metav1.Condition{ready(v1alpha1.ReasonSuspended, "spec.suspend is set")}
	case s.notVisible != "":
		return []metav1.Condition{ready(v1alpha1.ReasonNotVisible, s.notVisible), doing}
	case s.missing != "" && s.ignoreDrift && !s.stale:
		return []metav1.Condition{ready(v1alpha1.ReasonDrifted, s.missing), stalled(v1alpha1.ReasonDrifted, s.missing)}
	case s.missing != "" && terminal:
		return []metav1.Condition{ready(v1alpha1.ReasonDrifted, s.missing+missingDetail+f.Message), stalled(f.Reason, f.Message+s.retryText())}
	case s.missing != "" && f != nil:
		return []metav1.Condition{ready(v1alpha1.ReasonDrifted, s.missing+missingDetail+f.Message), doing}
	case s.missing != "":
		return []metav1.Condition{ready(v1alpha1.ReasonDrifted, s.missing), doing}
	case terminal:
		return []metav1.Condition{ready(f.Reason, f.Message), stalled(f.Reason, f.Message+s.retryText())}
	case f != nil && doing.Reason != v1alpha1.ReasonWaitingForRollout:
		return []metav1.Condition{ready(f.Reason, f.Message), doing}
	case s.running != nil:
		return []metav1.Condition{ready(v1alpha1.ReasonImporting, "the import is running"), doing}
	}
	return []metav1.Condition{ready(doing.Reason, doing.Message), doing}
}

// retryText says when an archive that stalls is tried again.
func (s *archiveState) retryText() string {
	if v1alpha1.IsDropIn(s.name) {
		return "; retried every 10 minutes"
	}
	return "; retried every 10 minutes, and at once on: kubectl annotate imagearchive " + s.name + " --overwrite " +
		v1alpha1.AnnotationReconcileRequestedAt + "=$(date +%s)"
}

// reconciling is the condition Reconciling of an archive for which something is done, or is to be done.
func (s *archiveState) reconciling() metav1.Condition {
	name, message := v1alpha1.ReasonPending, "waiting for other imports on the node"
	switch {
	case s.running != nil:
		name, message = v1alpha1.ReasonImporting, phaseText(*s.running)
	case s.notVisible != "":
		message = "checked again every minute"
	case !s.admitted():
		name, message = v1alpha1.ReasonWaitingForRollout, "waiting until spec.rollout admits the node"
		if s.failure != nil {
			message += "; " + s.failure.Message
		}
	case s.waiting != "":
		message = s.waiting
	case s.failure != nil && s.job == nil && !s.readyAt.IsZero():
		message = fmt.Sprintf("retry at %s, attempt %d", s.readyAt.UTC().Format("15:04:05Z"), s.entry.Attempts+1)
	case s.failure != nil:
		message = fmt.Sprintf("retry, attempt %d", s.entry.Attempts+1)
	case s.stale:
		message = "the source has another archive"
	case s.checked.IsZero():
		message = "waiting for containerd"
	}
	return condition.New(v1alpha1.ConditionReconciling, metav1.ConditionTrue, name, condition.Clip(message))
}

// phaseText is what an import does, with the share that is unpacked when nothing else grows.
func phaseText(p importer.Progress) string {
	if p.Phase != importer.PhaseUnpacking || p.Total == 0 {
		return string(p.Phase)
	}
	return fmt.Sprintf("%s, %d %%", p.Phase, p.Unpacked*100/p.Total)
}
