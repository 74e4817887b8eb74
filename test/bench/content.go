package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// recipe changes when the bytes that the parameters of an archive give change.
const recipe = 2

// fileSize is that of each file in a layer. Sizes of layers are multiples.
const fileSize = 1 << 20

// files of a layer: half of them text, half of them noise, so that there is something to decompress and something
// to keep.
func (l layer) files() []builder.File {
	dir := fmt.Sprintf("layer-%d/", l.Seed)
	var files []builder.File
	if !l.Unlisted {
		files = append(files, builder.File{Name: dir})
	}
	for i := range uint64(l.Size / fileSize) {
		name, seed := fmt.Sprintf("%sfile-%d", dir, i), l.Seed<<32|i
		if i%2 == 0 {
			files = append(files, builder.Noise(name, seed, fileSize))
		} else {
			files = append(files, text(name, seed, fileSize))
		}
	}
	return files
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
