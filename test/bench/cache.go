package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// file is an archive in the cache.
type file struct {
	archive
	path string
	// size in bytes.
	size int64
	// needed are the blobs that a machine of this platform needs of it.
	needed contents
}

// contents are blobs.
type contents map[digest.Digest]blobSize

type blobSize struct {
	Stored   int64
	Unpacked int64 `json:",omitempty"` // the bytes of the files in a layer
}

// largestWindow is the largest one that the agent accepts: --long=25 of the zstd command.
const largestWindow = 32 << 20

// ensure gives the archives, and builds those that are not there.
func ensure(as []archive) ([]file, error) {
	out := make([]file, len(as))
	for i, a := range as {
		path, err := a.path()
		if err != nil {
			return nil, err
		}
		out[i], err = a.open(path)
		if errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(os.Stderr, "building %s\n", path)
			if err = a.write(path); err == nil {
				out[i], err = a.open(path)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("archive %s: %w", a.Name, err)
		}
	}
	return out, nil
}

// path of the archive in the user's cache. It holds the parameters, so that other ones have another path.
func (a archive) path() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	parameters, err := json.Marshal(a)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(parameters, "%d", recipe))
	return filepath.Join(cache, "tarlift", "bench", fmt.Sprintf("%s-%x.tar", a.Name, sum[:6])), nil
}

// contentsPath is beside an archive, and written before it.
func contentsPath(path string) string { return path + ".json" }

// open opens what write has written.
func (a archive) open(path string) (file, error) {
	f := file{archive: a, path: path}
	info, err := os.Stat(path)
	if err != nil {
		return f, err
	}
	f.size = info.Size()
	text, err := os.ReadFile(contentsPath(path))
	if err != nil {
		return f, err
	}
	return f, json.Unmarshal(text, &f.needed)
}

// write builds the archive into the cache and removes what no archive needs any more from there.
func (a archive) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := removeOthers(filepath.Dir(path)); err != nil {
		return err
	}
	built, err := a.build()
	if err != nil {
		return err
	}
	defer built.Close()
	text, err := json.Marshal(a.contents(built))
	if err != nil {
		return err
	}
	if err := os.WriteFile(contentsPath(path), text, 0o644); err != nil {
		return err
	}
	f, err := os.Create(path + ".part")
	if err != nil {
		return err
	}
	if err := errors.Join(a.writeTo(f, built), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

func (a archive) writeTo(f io.Writer, built *builder.Built) error {
	w := bufio.NewWriterSize(f, 1<<20)
	out, err := io.WriteCloser(nopCloser{w}), error(nil)
	if a.Zstd {
		// One goroutine: the bytes must not depend on the number of cores.
		out, err = zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(largestWindow))
		if err != nil {
			return err
		}
	}
	_, err = built.WriteTo(out)
	return errors.Join(err, out.Close(), w.Flush())
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// contents are the blobs for this machine's platform.
func (a archive) contents(built *builder.Built) contents {
	out := contents{}
	add := func(d ocispec.Descriptor, unpacked int64) { out[d.Digest] = blobSize{d.Size, unpacked} }
	for i, img := range a.Images {
		made := built.Images[i]
		for _, d := range made.Indexes {
			add(d, 0)
		}
		p := made.Platforms[slices.Index(img.Platforms, machine[0])]
		add(p.Manifest, 0)
		add(p.Config, 0)
		for n, l := range p.Layers {
			add(l, img.Layers[n].Size)
		}
	}
	return out
}

func removeOthers(dir string) error {
	wanted := map[string]bool{}
	for _, a := range archives {
		path, err := a.path()
		if err != nil {
			return err
		}
		wanted[path], wanted[contentsPath(path)] = true, true
	}
	entries, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !wanted[e] {
			if err := os.Remove(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// warm reads a file, so that the first run does not pay for what the others find in memory.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}
