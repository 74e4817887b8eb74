package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// archive says what an archive consists of. Half of each layer is text, half is noise, so that there is something to
// decompress.
type archive struct {
	Name      string
	Platforms []string
	Layers    int // a platform
	LayerSize int64
}

// The sizes are those before compression, of which about 70 % are left. All archives together are to stay below 6 GiB.
var (
	single = archive{Name: "single", Platforms: machine, Layers: 10, LayerSize: 146 << 20}
	large  = archive{Name: "large", Platforms: machine, Layers: 10, LayerSize: 292 << 20}
	multi  = archive{Name: "multi", Platforms: []string{"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/ppc64le", "linux/s390x"}, Layers: 4, LayerSize: 110 << 20}

	archives = []archive{single, large, multi}
)

// recipe changes when the bytes that these parameters give change.
const recipe = 1

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

// ensure returns the path of the archive, and builds it when it is not there.
func (a archive) ensure() (string, error) {
	path, err := a.path()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Fprintf(os.Stderr, "building %s\n", path)
	if err := a.build(path); err != nil {
		return "", fmt.Errorf("build archive %s: %w", a.Name, err)
	}
	return path, nil
}

// build writes the archive into the cache and removes what no archive needs any more from there.
func (a archive) build(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := removeOthers(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.Create(path + ".part")
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	_, err = a.image().WriteTo(w)
	if err := errors.Join(err, w.Flush(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

func removeOthers(dir string) error {
	wanted := map[string]bool{}
	for _, a := range archives {
		path, err := a.path()
		if err != nil {
			return err
		}
		wanted[filepath.Base(path)] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !wanted[e.Name()] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a archive) image() builder.Archive {
	img := builder.Image{Names: []string{"bench.example/" + a.Name + ":1"}}
	for p, platform := range a.Platforms {
		made := builder.PlatformImage{Platform: builder.Platform(platform), Config: ocispec.ImageConfig{Cmd: []string{"/none"}}}
		for l := range a.Layers {
			made.Layers = append(made.Layers, a.layer(uint64(p*a.Layers+l)))
		}
		img.Platforms = append(img.Platforms, made)
	}
	return builder.Archive{Images: []builder.Image{img}}
}

// layer has files of 1 MiB.
func (a archive) layer(seed uint64) builder.Layer {
	const size = 1 << 20
	dir := fmt.Sprintf("layer-%d/", seed)
	files := []builder.File{{Name: dir}}
	for i := range uint64(a.LayerSize / size) {
		name, fileSeed := fmt.Sprintf("%sfile-%d", dir, i), seed<<32|i
		if i%2 == 0 {
			files = append(files, builder.Noise(name, fileSeed, size))
		} else {
			files = append(files, text(name, fileSeed, size))
		}
	}
	return builder.Layer{Files: files, Compression: builder.Gzip, Level: 1}
}

// text is a file of words, of which gzip leaves about 40 %.
func text(name string, seed uint64, size int64) builder.File {
	return builder.File{Name: name, Size: size, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(&wordReader{random: rand.NewPCG(seed, 0)}, size)), nil
	}}
}

// wordReader is an endless text.
type wordReader struct {
	random *rand.PCG
	rest   string
}

var words = makeWords()

func makeWords() []string {
	r := rand.New(rand.NewPCG(1, 1))
	out := make([]string, 1<<11)
	for i := range out {
		var w strings.Builder
		for range 2 + r.IntN(9) {
			w.WriteByte(byte('a' + r.IntN(26)))
		}
		out[i] = w.String() + " "
	}
	return out
}

func (w *wordReader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if w.rest == "" {
			w.rest = words[w.random.Uint64()%uint64(len(words))]
		}
		k := copy(p[n:], w.rest)
		w.rest = w.rest[k:]
		n += k
	}
	return n, nil
}
