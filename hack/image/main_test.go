package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

const program = `package main

var version = "unset"

func main() { println(version) }
`

// buildIn builds an image of a small program that lies in a new directory.
func buildIn(t *testing.T, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"main.go": program, "go.mod": "module example.com/program\n\ngo 1.26\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	if err := run(t.Context(), append([]string{"-package", ".", "-o", "out/image.tar"}, args...)); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob("out/*")
	if err != nil || len(left) != 1 {
		t.Errorf("files beside the archive: %q, %v", left, err)
	}
	data, err := os.ReadFile("out/image.tar")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The path of the working directory must not leak into the binary either.
func TestImageIsReproducible(t *testing.T) {
	if !bytes.Equal(buildIn(t, "-name", "example.com/agent:1"), buildIn(t, "-name", "example.com/agent:1")) {
		t.Error("two builds of one source differ")
	}
}

func TestImage(t *testing.T) {
	members := untar(t, bytes.NewReader(buildIn(t, "-name", "example.com/agent:1")))
	index := decode[ocispec.Index](t, members["index.json"])
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != "example.com/agent:1" {
		t.Fatalf("index.json has other images than the one that was asked for: %s", members["index.json"])
	}
	blob := func(d ocispec.Descriptor) []byte { return members[builder.BlobPath(d.Digest)] }
	var platforms []string
	for _, d := range decode[ocispec.Index](t, blob(index.Manifests[0])).Manifests {
		platforms = append(platforms, d.Platform.OS+"/"+d.Platform.Architecture)
		manifest := decode[ocispec.Manifest](t, blob(d))
		config := decode[ocispec.Image](t, blob(manifest.Config))
		if diff := cmp.Diff([]string{"/agent"}, config.Config.Entrypoint); diff != "" {
			t.Errorf("entrypoint (-want +got):\n%s", diff)
		}
		files := map[string][]byte{}
		for _, layer := range manifest.Layers {
			r, err := gzip.NewReader(bytes.NewReader(blob(layer)))
			if err != nil {
				t.Fatal(err)
			}
			for name, data := range untar(t, r) {
				files[name] = data
			}
		}
		if !bytes.HasPrefix(files["agent"], []byte("\x7fELF")) {
			t.Error("the agent is no ELF file")
		}
		if !x509.NewCertPool().AppendCertsFromPEM(files["etc/ssl/certs/ca-certificates.crt"]) {
			t.Error("no root certificates")
		}
	}
	if diff := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, platforms); diff != "" {
		t.Errorf("platforms (-want +got):\n%s", diff)
	}
}

func TestRefusals(t *testing.T) {
	tests := map[string][]string{
		"a name without a tag would get one at import": {"-name", "example.com/agent"},
		"no image name":             {"-name", "Example Agent:1"},
		"a platform without arch":   {"-platforms", "linux"},
		"arguments have no meaning": {"bin/agent"},
		"the build's failure":       {"-package", "./missing"},
	}
	for name, args := range tests {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "image.tar")
			if err := run(t.Context(), append([]string{"-o", out}, args...)); err == nil {
				t.Error("no error")
			}
			if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("an archive was written: %v", err)
			}
		})
	}
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	members := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return members
		}
		if err != nil {
			t.Fatal(err)
		}
		if members[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func decode[T any](t *testing.T, data []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return v
}
