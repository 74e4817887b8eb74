package importer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// An importer that is killed leaves a lease, ingests, and perhaps some of its names. Containerd tells who lives: each
// importer holds a writer open, which the daemon closes when its client is gone.

const (
	ingestRoot = "tarlift/"
	lifeRoot   = "tarlift-alive/" // beside the ingests: these are aborted all together
	archiveKey = "archive/"

	// importUID is `agent import`'s, in place of an ImageArchive's. Each run of it has a key of its own.
	importUID = "import"
)

// sessionKey names the ingests and the sign of life of those who use a lease: all leases of one archive have one.
func sessionKey(uid, lease string) string {
	if uid == importUID {
		return lease
	}
	return archiveKey + uid
}

// uidOf is whose key it is.
func uidOf(key string) string {
	if uid, ok := strings.CutPrefix(key, archiveKey); ok {
		return uid
	}
	return importUID
}

func ingestPrefix(key string) string { return ingestRoot + key + "/" }

// errAlive is an importer that somebody else is.
var errAlive = errors.New("another process is importing this")

// life is the sign that an importer lives.
type life struct {
	importer *Importer
	ref      string
	base     context.Context // is not cancelled, and has no lease
	writer   content.Writer
	close    context.CancelFunc
}

// deathWait is how long the daemon may take to notice that a process is gone, which takes it milliseconds.
const deathWait = 100 * time.Millisecond

// live takes the sign of life of a session, after at most this wait for another to give it up. Only one has it at a time:
// errAlive.
func (i *Importer) live(ctx context.Context, key string, wait time.Duration) (*life, error) {
	l := &life{importer: i, ref: lifeRoot + key, base: context.WithoutCancel(ctx)}
	if err := l.open(ctx, wait); err != nil {
		return nil, err
	}
	return l, nil
}

// open opens the writer. It outlasts a cancelled import, until all is cleared up, and below no lease it outlasts that
// too. A containerd that hangs is not waited for when ctx has ended.
func (l *life) open(ctx context.Context, wait time.Duration) error {
	open, cancel := context.WithCancel(l.base)
	stop := context.AfterFunc(ctx, cancel)
	w, err := openWriter(open, l.importer.services.content, wait, content.WithRef(l.ref)) //nolint:contextcheck // it outlasts ctx
	ended := !stop()
	if err == nil {
		l.writer, l.close = w, cancel
		if !ended {
			return nil
		}
		err = clearUp(l.base, l.end) //nolint:contextcheck // ctx has ended
	}
	cancel()
	switch {
	case ended:
		return errors.Join(ctx.Err(), err)
	case errdefs.IsUnavailable(err) && strings.Contains(err.Error(), "locked"):
		return fmt.Errorf("ingest %q: %w", l.ref, errAlive)
	}
	return runtimeError("show life", err)
}

// renewWait is how long a sign of life that broke may take to be free again: containerd has been restarted then.
const renewWait = 10 * deathWait

// renew shows life again if containerd has closed the writer, for example because it was restarted. Whoever has looked
// meanwhile took this session for dead, and has dealt with what it had. errAlive: somebody is at it.
func (l *life) renew(ctx context.Context) (broken bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err //nolint:wrapcheck // the caller's own
	}
	stop := context.AfterFunc(ctx, l.close)
	_, err = l.writer.Status()
	if stop() && err == nil {
		return false, nil
	}
	l.writer.Close() //nolint:gosec // nobody wrote to it
	l.close()
	return true, l.open(ctx, renewWait)
}

// end is the last thing that a session does.
func (l *life) end(ctx context.Context) error {
	defer l.close()
	defer l.writer.Close()
	if err := l.importer.services.content.Abort(ctx, l.ref); err != nil && !errdefs.IsNotFound(err) {
		return runtimeError("abort ingest "+l.ref, err)
	}
	return nil
}

// Recover deals with what importers that were killed have left. Of wanted owners a publishing that had begun is
// finished, and what their next attempts need stays. Of others it is undone, and all of theirs goes. What `agent import`
// had begun to publish is finished, and the rest goes. Importers that live are left alone, and so are those whose UID among
// does not say yes to; nil for none.
func (i *Importer) Recover(ctx context.Context, wanted []Owner, among func(uid string) bool) error {
	return i.recover(i.in(ctx), "", among, func(o Owner) bool {
		return slices.ContainsFunc(wanted, func(w Owner) bool { return w.UID == o.UID && w.SpecHash == o.SpecHash })
	})
}

// recover is Recover for the leases and signs of life of one UID, empty for all.
func (i *Importer) recover(ctx context.Context, uid string, among func(uid string) bool, wanted func(Owner) bool) error {
	left, err := i.sessionLeases(ctx, uid)
	if err != nil {
		return err
	}
	byKey := map[string][]leases.Lease{}
	for _, l := range left {
		key := sessionKey(l.Labels[labelUID], l.ID)
		byKey[key] = append(byKey[key], l)
	}
	signs, err := i.services.content.ListStatuses(ctx, fmt.Sprintf("ref~=%q", "^"+lifeRoot))
	if err != nil {
		return runtimeError("list ingests", err)
	}
	for _, s := range signs { // also of those who died before they had a lease
		key := strings.TrimPrefix(s.Ref, lifeRoot)
		if _, ok := byKey[key]; !ok && (uid == "" || strings.HasPrefix(key, leasePrefix(uid))) {
			byKey[key] = nil
		}
	}
	var failures []error
	for _, key := range slices.Sorted(maps.Keys(byKey)) { // the text of a failure comes into a condition
		if among != nil && !among(uidOf(key)) {
			continue
		}
		if err := i.recoverSession(ctx, key, byKey[key], wanted); err != nil && !errors.Is(err, errAlive) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// recoverSession deals with the leases of one key, if nobody who uses them lives.
func (i *Importer) recoverSession(ctx context.Context, key string, left []leases.Lease, wanted func(Owner) bool) error {
	l, err := i.live(ctx, key, deathWait)
	if err != nil {
		return err
	}
	keeps := false
	for _, lease := range left {
		owner := Owner{UID: lease.Labels[labelUID], SpecHash: lease.Labels[labelSpec]}
		keep := wanted(owner)
		if err = i.settle(ctx, lease, keep || owner.UID == importUID); err != nil {
			break
		}
		if keep { // what is published needs no next attempt
			var loss string
			var found bool
			if _, loss, found, err = i.Imported(ctx, owner); err != nil {
				break
			}
			keep = !found || loss != ""
		}
		if keep {
			keeps = true
		} else if err = i.dropLease(ctx, lease); err != nil {
			break
		}
	}
	if err == nil && !keeps {
		err = i.abortIngests(ctx, ingestPrefix(key))
	}
	return errors.Join(err, l.end(ctx))
}

// sessionLeases lists the leases of one UID, empty for all.
func (i *Importer) sessionLeases(ctx context.Context, uid string) ([]leases.Lease, error) {
	filter := fmt.Sprintf("labels.%q", labelUID)
	if uid != "" {
		filter += fmt.Sprintf("==%q", uid)
	}
	list, err := i.services.leases.List(ctx, filter)
	if err != nil {
		return nil, runtimeError("list leases", err)
	}
	return list, nil
}

// dropLease deletes a lease. What nothing else holds is collected before it returns.
func (i *Importer) dropLease(ctx context.Context, l leases.Lease) error {
	if err := i.services.leases.Delete(ctx, l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return runtimeError("delete lease "+l.ID, err)
	}
	return nil
}

// Release drops the lease and the partial ingests that earlier attempts for an archive kept, and takes back names of which
// a kill left some unwritten. What no published image holds is collected before it returns.
func (i *Importer) Release(ctx context.Context, uid string) error {
	if uid == "" || uid == importUID {
		return nil
	}
	ctx = i.in(ctx)
	left, err := i.sessionLeases(ctx, uid)
	if err != nil {
		return err
	}
	return i.recoverSession(ctx, sessionKey(uid, ""), left, func(Owner) bool { return false })
}
