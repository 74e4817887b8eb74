package importer

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/source"
)

// Importers on a node, `agent import` beside the DaemonSet's among them, need the same blobs at times. They see each
// other's ingests in containerd. The one that was there first goes on, the others wait as long as it does.

const (
	// shareMin is the least size in bytes of a blob that is worth looking who else brings it.
	shareMin = 1 << 20
	// sharePatience is how long another's ingest may come on too slowly before the blob is brought here too: an import that
	// stalls must not hold up others, and to move a blob twice does no harm but to the link.
	sharePatience = 500 * time.Millisecond
	// commitPatience bounds the wait for an ingest that has all its bytes: they are being synced.
	commitPatience = 20 * time.Second
	sharePoll      = 50 * time.Millisecond

	// What too slow is, in bytes a second: it is not worth while to wait for what a file gives, and seldom worth while to take
	// a second share of the link that another import has to itself.
	slowBesideFile   = 8 << 20
	slowBesideRemote = 64 << 10
)

// worthFollowing is how many bytes have to come of another's ingest within sharePatience, 0 to follow none: whoever reads
// in a single pass must read on.
func worthFollowing(src source.Blob) int64 {
	rate := int64(slowBesideFile)
	switch {
	case !src.RandomAccess():
		return 0
	case src.Remote():
		rate = slowBesideRemote
	}
	return rate * int64(sharePatience) / int64(time.Second)
}

// elsewhereError says that another importer was first to bring a blob.
type elsewhereError struct{ ref string }

func (e *elsewhereError) Error() string { return fmt.Sprintf("ingest %q brings it", e.ref) }

// yield lets an older ingest of the same blob go first, apart from those that were passed. Of two importers that begin
// at the same time, each opens its ingest before it looks, so that one of them sees the other's at least.
func (s *session) yield(ctx context.Context, d ocispec.Descriptor, own content.Status, passed []string) error {
	if d.Size < shareMin || s.follows == 0 {
		return nil
	}
	all, err := s.importer.ingestsOf(ctx, d.Digest)
	if err != nil {
		return err
	}
	ownRef := s.prefix + d.Digest.String()
	for _, st := range all {
		if st.Ref == ownRef { // as the store tells it, for comparing
			own.StartedAt = st.StartedAt
		}
	}
	for _, st := range all {
		older := st.StartedAt.Before(own.StartedAt) || st.StartedAt.Equal(own.StartedAt) && st.Ref < ownRef
		if st.Ref != ownRef && older && !slices.Contains(passed, st.Ref) {
			return &elsewhereError{st.Ref}
		}
	}
	return nil
}

// ingestsOf lists what all importers have of a blob that is not committed.
func (i *Importer) ingestsOf(ctx context.Context, d digest.Digest) ([]content.Status, error) {
	list, err := i.services.content.ListStatuses(ctx, fmt.Sprintf("ref~=%q", "^tarlift/.*/"+regexp.QuoteMeta(d.String())+"$"))
	if err != nil {
		return nil, runtimeError("list ingests", err)
	}
	return list, nil
}

// follow waits until another's ingest is committed, given up, or comes on too slowly.
func (s *session) follow(ctx context.Context, d ocispec.Descriptor, ref string) error {
	var offset int64
	since := time.Now()
	for {
		st, err := s.importer.services.content.Status(ctx, ref)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return runtimeError("look at ingest "+ref, err)
		}
		switch waited := time.Since(since); {
		case st.Offset >= d.Size:
			if waited > commitPatience {
				return nil
			}
		case waited > sharePatience:
			if st.Offset-offset < s.follows {
				return nil
			}
			offset, since = st.Offset, time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err() //nolint:wrapcheck // the caller's own
		case <-time.After(sharePoll):
		}
	}
}
