// Package genuine has archives that other tools wrote, and what must be found in
// them. README.md says how each was made.
package genuine

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed *.tar *.tar.gz *.tar.zst ctr.txt
var files embed.FS

// BaseName is the one to give to archives that need one.
const BaseName = "registry.example/base"

// Archive is a file and what must be found in it.
type Archive struct {
	File string
	// Why this archive is here: what it has that others have not.
	Why string
	// Format is "oci" or "docker".
	Format string
	// Refused tells that it is no acceptable archive, though `ctr images import
	// --all-platforms` takes it.
	Refused bool
	// NeedsBaseName tells that without BaseName it must be refused.
	NeedsBaseName bool
	// Node is the platform of a node that can use all images; "" is linux/amd64.
	Node   string
	Images []Image
}

// Image is a name in an archive.
type Image struct {
	// Name is the full normalised one. Ending in @ it goes on with the digest of the target.
	Name string
	// CtrName is what ctr makes of it where that is another.
	CtrName string
	// Digest of the target, as a real `ctr images import` has published it.
	Digest string
	// Platforms of all manifests in the order of their index, separated by
	// spaces; "" is linux/amd64.
	Platforms string
	// Present are those that are in the archive; "" is all of them.
	Present string
}

// Data gives the bytes of the archive.
func (a Archive) Data() ([]byte, error) {
	data, err := files.ReadFile(a.File)
	if err != nil {
		return nil, fmt.Errorf("genuine archive: %w", err)
	}
	return data, nil
}

// Archives gives the table with the digests that ctr.txt records. The table and
// ctr.txt must name the same images, and the table all files.
func Archives() ([]Archive, error) {
	recorded, err := readRecord()
	if err != nil {
		return nil, err
	}
	unused, err := fs.Glob(files, "*.tar*")
	if err != nil {
		return nil, fmt.Errorf("genuine archives: %w", err)
	}
	missing := map[string]bool{}
	for _, f := range unused {
		missing[f] = true
	}
	out := make([]Archive, 0, len(table))
	for _, a := range table {
		delete(missing, a.File)
		a.Images = append([]Image(nil), a.Images...)
		for i := range a.Images {
			if err := a.Images[i].complete(recorded[a.File]); err != nil {
				return nil, fmt.Errorf("%s: %w", a.File, err)
			}
		}
		if len(recorded[a.File]) > 0 {
			return nil, fmt.Errorf("%s: ctr.txt has %v, the table has not", a.File, recorded[a.File])
		}
		out = append(out, a)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("not in the table: %v", missing)
	}
	return out, nil
}

// readRecord gives the digests in ctr.txt by file and name.
func readRecord() (map[string]map[string]string, error) {
	data, err := files.ReadFile("ctr.txt")
	if err != nil {
		return nil, fmt.Errorf("genuine archives: %w", err)
	}
	out := map[string]map[string]string{}
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 3 {
			return nil, fmt.Errorf("ctr.txt: line %q", line)
		}
		if out[f[0]] == nil {
			out[f[0]] = map[string]string{}
		}
		out[f[0]][f[1]] = f[2]
	}
	return out, nil
}

// complete takes the image's digest out of what was recorded for its archive.
func (img *Image) complete(recorded map[string]string) error {
	want := img.Name
	if img.CtrName != "" {
		want = img.CtrName
	}
	for name, digest := range recorded {
		if name != want && name != want+digest {
			continue
		}
		delete(recorded, name)
		img.Digest = digest
		if strings.HasSuffix(img.Name, "@") {
			img.Name += digest
		}
		if img.Platforms == "" {
			img.Platforms = "linux/amd64"
		}
		if img.Present == "" {
			img.Present = img.Platforms
		}
		return nil
	}
	return fmt.Errorf("ctr.txt has no %q", want)
}
