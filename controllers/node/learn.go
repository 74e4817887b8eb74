package node

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/reason"
)

// news is what an outcome tells that was not known before, and that an Event is worth.
type news int

const (
	nothingNew    news = iota
	newlyFailed        // in another way than before
	newlyImported      // for the first time, or another archive
	newlyLost          // images that were complete are no more
	newlyRepaired      // what was lost is whole again, without the source
	newlyHealed        // and by an import
	newlyStale         // the source holds another archive
)

// learn takes in what became of a job.
func (a *agenda) learn(o *outcome, now time.Time) news {
	if o.runtime != nil {
		a.runtime = &v1alpha1.RuntimeInfo{Version: o.runtime.Version, Snapshotter: o.runtime.Snapshotter, Platform: o.runtime.Platform}
	}
	rec := a.records[o.job.uid]
	if rec != nil && o.job.kind == jobImport && !o.stopped {
		rec.suspect = false
	}
	switch {
	case o.job.kind == jobSweep:
		a.learnSweep(o, now)
	case o.job.kind == jobRelease:
		if t := a.releases[o.job.uid]; t != nil && o.err != nil {
			t.failed(now, retryLimit, a.jitter)
		} else {
			delete(a.releases, o.job.uid)
		}
	case o.stopped, rec == nil, rec.owner.SpecHash != o.job.owner.SpecHash:
		// Neither a success nor a failure of what is wanted now.
	case o.job.kind == jobProbe:
		return a.learnProbe(rec, o, now)
	case o.err != nil:
		return a.learnFailure(rec, o, now)
	case o.job.kind == jobCheck:
		return a.learnCheck(rec, o, now)
	default:
		return a.learnImport(rec, o, now)
	}
	return nothingNew
}

// learnSweep notes how a sweep ended. One that an archive went during swept without knowing.
func (a *agenda) learnSweep(o *outcome, now time.Time) {
	s := &a.sweep
	if a.checkInterval > 0 {
		s.next = now.Add(about(a.checkInterval, a.jitter))
	}
	if o.err != nil {
		s.needless = false
		limit := retryLimit
		if errors.Is(o.err, importer.ErrRuntimeUnavailable) {
			limit = runtimeRetryLimit
		}
		s.failed(now, limit, a.jitter)
		return
	}
	s.attempt, s.needless, s.skipped = attempt{}, o.job.unknown == a.unknown, nil
	for _, r := range o.released {
		if len(r.Skipped) > 0 {
			s.skipped = append(s.skipped, r.Owner.Name)
		}
	}
	for _, w := range o.job.wanted {
		if w.UID != "" && !a.stillWants(w) {
			s.needless = false
		}
	}
}

// stillWants says whether an owner is wanted as it was: with the same policy, too.
func (a *agenda) stillWants(o importer.Owner) bool {
	for _, rec := range a.records {
		if rec.owner.UID == o.UID {
			return rec.owner.Deletion == o.Deletion
		}
	}
	for _, u := range a.unclear {
		if u.UID == o.UID {
			return u.Deletion == o.Deletion
		}
	}
	return false
}

// learnFailure notes a failed attempt. A containerd that does not answer says nothing against images that were
// there before; once it answers again, it is asked for them first.
func (a *agenda) learnFailure(rec *record, o *outcome, now time.Time) news {
	reason, terminal := reason.Classify(o.err)
	if o.job.kind == jobImport && o.opened {
		rec.validator = o.validator
	}
	switch {
	case terminal:
		rec.stalled(now, a.jitter)
		rec.scheduleProbe(now, a.jitter)
		a.release(rec.archive.UID)
	case reason == v1alpha1.ReasonInsufficientDisk:
		rec.stalled(now, a.jitter) // each attempt may transfer, and drop, all that fits
	case reason == v1alpha1.ReasonRuntimeUnavailable && o.job.kind == jobCheck:
		rec.unanswered(now, runtimeRetryLimit, a.jitter)
		rec.checked = false
	case reason == v1alpha1.ReasonRuntimeUnavailable:
		rec.failed(now, runtimeRetryLimit, a.jitter)
		rec.checked = false
	default:
		rec.failed(now, retryLimit, a.jitter)
		rec.repaired = rec.repaired || o.job.repair // by an import, then
	}
	if rec.done {
		return nothingNew
	}
	failed := failure{v1alpha1.ImportError{Reason: reason, Message: condition.ErrorText(o.err)}, terminal}
	known := rec.failure != nil && *rec.failure == failed
	rec.failure = &failed
	if known {
		return nothingNew
	}
	return newlyFailed
}

// learnCheck notes whether containerd has all of an archive's images. A report that says so already stays as it is.
func (a *agenda) learnCheck(r *record, o *outcome, now time.Time) news {
	first := r.seen.IsZero()
	r.looked(o.at, now, a.checkInterval, a.jitter)
	r.answered()
	if r.failure != nil && r.failure.Reason == v1alpha1.ReasonRuntimeUnavailable {
		r.failure = nil
	}
	whole := o.found && o.loss == ""
	switch {
	case !whole && !o.found && !r.done && r.loss == "":
		return nothingNew // never was there
	case !whole:
		return a.lose(r, o, now)
	case r.stale:
		r.loss, r.repaired = "", false
		return nothingNew
	}
	repaired := r.loss != "" && o.repaired > 0
	if !r.done || r.entry.IndexDigest != string(o.result.IndexDigest) {
		r.complete(o.result, now)
	} else {
		r.names, r.validator = o.result.Names, o.result.Validator
		r.reset()
	}
	if first { // when it was imported is long ago, and many agents may start at a time
		r.probe = attempt{notBefore: now.Add(time.Duration(a.jitter() * float64(intervalOf(r.archive))))}
	}
	if repaired {
		return newlyRepaired
	}
	return nothingNew
}

const (
	// relapseTime is how soon after it was mended a loss counts as somebody's doing, who is likely to do it again.
	relapseTime = 10 * time.Minute
	// relapseLimit bounds the wait before what is lost again and again is mended: still well within a minute.
	relapseLimit = 30 * time.Second
)

// lose notes that images which were complete are so no more.
func (a *agenda) lose(r *record, o *outcome, now time.Time) news {
	text := cmp.Or(o.loss, "none of the images is there")
	known := o.job.repair || r.loss == text
	switch {
	case r.loss == "":
		r.failure, r.repaired, r.anew = nil, false, true
		r.reset()
		if r.healed.IsZero() || now.Sub(r.healed) > relapseTime {
			r.relapses = 0
			break
		}
		r.tries = r.relapses
		r.failed(now, relapseLimit, a.jitter)
		r.relapses++
	case !known: // more of it, or something else
		r.repaired = false
	}
	r.repaired = r.repaired || o.job.repair
	r.done, r.loss = false, text
	names := slices.Concat(r.names, o.result.Names) // of those that are gone only the former tell
	slices.Sort(names)
	r.names = slices.Compact(names)
	if known {
		return nothingNew
	}
	return newlyLost
}

func (a *agenda) learnImport(r *record, o *outcome, now time.Time) news {
	healed := r.loss != "" && !r.stale
	r.looked(o.at, now, a.checkInterval, a.jitter)
	r.complete(o.result, now)
	r.scheduleProbe(now, a.jitter)
	r.entry.CompletionTime = condition.Timestamp(now)
	r.entry.Bytes = &v1alpha1.ArchiveBytes{
		Total: o.result.Bytes.Written + o.result.Bytes.Skipped, Done: o.result.Bytes.Written, Skipped: o.result.Bytes.Skipped,
	}
	if o.job.owner.Deletion != r.owner.Deletion { // the import has recorded the former one
		a.sweep.need()
	}
	if healed {
		return newlyHealed
	}
	return newlyImported
}

// learnProbe notes whether a source holds another archive. That it could not be asked says nothing against images that
// are there.
func (a *agenda) learnProbe(r *record, o *outcome, now time.Time) news {
	if o.err != nil {
		r.probe.failed(now, min(retryLimit, intervalOf(r.archive)), a.jitter)
		return nothingNew
	}
	r.scheduleProbe(now, a.jitter)
	if !o.changed {
		return nothingNew
	}
	r.reset() // what stalls may be worth another attempt now
	if r.done {
		r.done, r.stale, r.anew = false, true, true
	}
	return newlyStale
}
