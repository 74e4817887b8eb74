package importer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

const (
	// labelIntent marks the note of a publishing with the lease that holds it. It is no record of the past: it goes with the
	// lease, at the end of the import.
	labelIntent = "tarlift.dev/publishing"
	// maxIntentBytes are 8 KiB for each of 8,192 names (archive.MaxNames, and a digest reference each): what there was before
	// has a label of some hundred bytes for each archive that shares the name.
	maxIntentBytes = 64 << 20
)

// note stores what is about to be published, if a kill could leave a part of it: a single name is one write.
func (s *session) note(ctx context.Context, in *intent) (digest.Digest, error) {
	if len(in.Writes) < 2 {
		return "", nil
	}
	data, err := json.Marshal(in)
	if err != nil {
		return "", fmt.Errorf("encode what is to be published: %w", err)
	}
	if len(data) > maxIntentBytes {
		return "", fmt.Errorf("the labels of what these names stand for have more than %d bytes: %w", maxIntentBytes, archive.ErrLimit)
	}
	const ref = "publishing"
	// What a killed attempt left under this reference would be gone on with, and never match.
	if err := s.services.content.Abort(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
		return "", runtimeError("abort ingest", err)
	}
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	err = content.WriteBlob(ctx, s.services.content, ref, bytes.NewReader(data), d,
		content.WithLabels(map[string]string{labelIntent: s.lease.ID}))
	if err != nil {
		return "", runtimeError("note what is to be published", err)
	}
	return d.Digest, nil
}

// forget deletes a note.
func (i *Importer) forget(ctx context.Context, note digest.Digest) error {
	if note == "" {
		return nil
	}
	if err := i.services.content.Delete(ctx, note); err != nil && !errdefs.IsNotFound(err) {
		return runtimeError("forget what was to be published", err)
	}
	return nil
}

// settle finishes the publishing that a kill interrupted, if that is wanted and can be done, or takes it back. One that
// was not interrupted stands.
func (i *Importer) settle(ctx context.Context, lease leases.Lease, finish bool) error {
	var notes []digest.Digest
	err := i.services.content.Walk(ctx, func(info content.Info) error {
		notes = append(notes, info.Digest)
		return nil
	}, fmt.Sprintf("labels.%q==%q", labelIntent, lease.ID))
	if err != nil {
		return runtimeError("look for a publishing", err)
	}
	for _, note := range notes {
		data, err := i.readBlob(ctx, note, maxIntentBytes)
		if err != nil {
			return err
		}
		in := &intent{}
		if err := json.Unmarshal(data, in); err != nil {
			return fmt.Errorf("read note %s of a publishing: %w", note, err)
		}
		done, err := i.written(ctx, in)
		if err == nil && !done && finish {
			done, err = i.finish(ctx, lease, in)
		}
		switch {
		case err != nil:
			return err
		case done:
			err = i.forget(ctx, note)
		default:
			err = i.undo(ctx, in, note)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// written says whether all names of an intent are as they were to be.
func (i *Importer) written(ctx context.Context, in *intent) (bool, error) {
	for _, w := range in.Writes {
		now, err := i.services.images.Get(ctx, w.Image.Name)
		if err != nil && !errdefs.IsNotFound(err) {
			return false, runtimeError("look up image "+w.Image.Name, err)
		}
		if err != nil || !w.written(now, in.Label) {
			return false, nil
		}
	}
	return true, nil
}

// finish writes those names of an intent that are not written yet. It does not begin when one of the images is not whole,
// or when somebody has given a name another meaning meanwhile.
func (i *Importer) finish(ctx context.Context, lease leases.Lease, in *intent) (bool, error) {
	var todo []*nameWrite
	whole := map[digest.Digest]bool{}
	for _, w := range in.Writes {
		if !whole[w.Image.Target.Digest] {
			missing, err := i.missing(ctx, w.Image.Target)
			if err != nil || len(missing) > 0 {
				return false, err
			}
			whole[w.Image.Target.Digest] = true
		}
		now, err := i.services.images.Get(ctx, w.Image.Name)
		switch {
		case errdefs.IsNotFound(err):
			todo = append(todo, &nameWrite{Image: w.Image})
		case err != nil:
			return false, runtimeError("look up image "+w.Image.Name, err)
		case w.written(now, in.Label):
		case w.Old == nil, now.Target.Digest != w.Old.Target.Digest, now.Labels[in.Label] == w.Image.Labels[in.Label],
			w.retargets(now.Target) && w.sharedSince(now, in.Label):
			return false, nil
		default:
			todo = append(todo, w)
		}
	}
	for _, w := range todo {
		if err := i.write(ctx, lease, w); err != nil {
			return false, fmt.Errorf("publish %q: %w", w.Image.Name, err)
		}
	}
	return true, nil
}
