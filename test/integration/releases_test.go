package integration

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/tarlift/tarlift/internal/archive/testdata/genuine"
	"github.com/tarlift/tarlift/test/cluster"
)

// olderReleases of containerd are those that nodes still run. All other tests here use the present one.
var olderReleases = []string{"1.7"}

// eachOlderRelease runs a test with a containerd of each older release, which serves CRI and is empty.
func eachOlderRelease(t *testing.T, test func(*testing.T, *runtime)) {
	t.Helper()
	for _, release := range olderReleases {
		t.Run("containerd "+release, func(t *testing.T) {
			r := startRuntime(t, cluster.ContainerdOptions{CRI: true, Release: release})
			if v, err := r.Version(r.ctx); err != nil || !strings.HasPrefix(v.Version, "v"+release+".") {
				t.Fatalf("containerd is %q (%v)", v.Version, err)
			}
			test(t, r)
		})
	}
}

// What real tools wrote is imported whole, with the digests that `ctr images import` gives it, and the kubelet finds it
// under every name, pinned: also after containerd has been restarted, and the next import has nothing to do then.
func TestOlderReleasesImportGenuine(t *testing.T) {
	archives, err := genuine.Archives()
	if err != nil {
		t.Fatal(err)
	}
	// Those for other machines come last: CRI cannot read their images, and what comes under the same names later waits
	// until it tries again, after twice the time each time.
	slices.SortStableFunc(archives, func(a, b genuine.Archive) int { return strings.Compare(a.Node, b.Node) })
	eachOlderRelease(t, func(t *testing.T, r *runtime) {
		before := r.state(t)
		for _, a := range archives {
			t.Run(a.File, func(t *testing.T) {
				t.Cleanup(func() { r.forget(t, before) })
				args := r.importGenuine(t, a)
				if a.Refused || a.File != "buildkit-oci-names.tar" {
					return
				}
				whole := r.state(t)
				if err := r.Containerd.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
				r.checkGenuine(t, a)
				if again := r.agentImport(t, nil, args...); again.code != 0 || again.Bytes.Written != 0 {
					t.Errorf("after the restart: exit code %d, %+v: %s", again.code, again.Bytes, again.errOut)
				}
				unchanged(t, whole, r.state(t))
			})
		}
	})
}

// importGenuine imports an archive and checks what became of it. It returns the arguments of the import.
func (r *runtime) importGenuine(t *testing.T, a genuine.Archive) (args []string) {
	t.Helper()
	data, err := a.Data()
	if err != nil {
		t.Fatal(err)
	}
	before := r.state(t)
	if a.NeedsBaseName {
		args = append(args, "--base-name", genuine.BaseName)
	}
	if a.Node != "" {
		args = append(args, "--platform", a.Node)
	}
	args = append(args, fileOf(t, data))
	o := r.agentImport(t, nil, args...)
	if a.Refused {
		if o.code != 1 || o.Error == nil || o.Error.Reason != "ArchiveInvalid" {
			t.Errorf("exit code %d, %+v, want ArchiveInvalid (%s)", o.code, o.Error, a.Why)
		}
		unchanged(t, before, r.state(t))
		return args
	}
	if o.code != 0 || len(o.Images) != len(a.Images) || o.CRI != "" || a.Node == "" && o.NotVisible != nil {
		t.Fatalf("exit code %d, images %v, CRI %q, unseen %q (%s): %s", o.code, o.Images, o.CRI, o.NotVisible, a.Why, o.errOut)
	}
	r.checkGenuine(t, a)
	return args
}

// checkGenuine looks at each name of an archive, as containerd and the kubelet see it, and for anything else.
func (r *runtime) checkGenuine(t *testing.T, a genuine.Archive) {
	t.Helper()
	only := platforms.OnlyStrict(platforms.MustParse(cmp.Or(a.Node, "linux/amd64")))
	var want []string
	for _, img := range a.Images {
		target, err := r.ImageService().Get(r.ctx, img.Name)
		if err != nil {
			t.Errorf("%s: %v", img.Name, err)
			continue
		}
		config, err := target.Config(r.ctx, r.ContentStore(), only)
		if err != nil {
			t.Fatal(err)
		}
		all := names(img.Name, digest.Digest(img.Digest), config.Digest)
		want = append(want, all...)
		for _, name := range all[:2] {
			r.checkName(t, name, img.Digest, a.Node)
		}
		// Images with one config share its id, which stands for one of them.
		id, err := r.ImageService().Get(r.ctx, all[2])
		if err != nil {
			t.Errorf("%s: %v", all[2], err)
			continue
		}
		r.checkName(t, id.Name, id.Target.Digest.String(), a.Node)
	}
	slices.Sort(want)
	if diff := gocmp.Diff(slices.Compact(want), r.allNames(t, "k8s.io")); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	s := r.state(t)
	if len(s["leases"])+len(s["ingests"]) > 0 {
		t.Errorf("left behind: leases %v, ingests %v", s["leases"], s["ingests"])
	}
}

// checkName wants a name to stand for an image that is whole for the platform and unpacked. CRI looks for the images of
// this machine's platform only, which is meant by "".
func (r *runtime) checkName(t *testing.T, name, digest, platform string) {
	t.Helper()
	local := platform == ""
	if local {
		platform = "linux/amd64"
	}
	img, err := r.ImageService().Get(r.ctx, name)
	if err != nil || img.Target.Digest.String() != digest {
		t.Errorf("%s is %s, want %s (%v)", name, img.Target.Digest, digest, err)
		return
	}
	only := platforms.OnlyStrict(platforms.MustParse(platform))
	_, _, _, missing, err := images.Check(r.ctx, r.ContentStore(), img.Target, only)
	if err != nil || len(missing) > 0 {
		t.Errorf("%s: missing %v (%v)", name, missing, err)
	}
	if !local {
		return
	}
	if i, err := r.GetImage(r.ctx, name); err != nil {
		t.Error(err)
	} else if unpacked, err := i.IsUnpacked(r.ctx, "overlayfs"); err != nil || !unpacked {
		t.Errorf("%s: unpacked %v (%v)", name, unpacked, err)
	}
	r.pinned(t, name, true)
	config, err := img.Config(r.ctx, r.ContentStore(), only)
	if err != nil {
		t.Fatal(err)
	}
	status, err := r.cri().ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil || status.Image.GetId() != config.Digest.String() {
		t.Errorf("CRI has %s as %v, want %s (%v)", name, status.GetImage(), config.Digest, err)
	}
}

// An old containerd makes the directory of its content store when it writes the first blob. Before that the file system
// is known as well: doctor sees it, and a dry run ends as the import does. Here nothing may list ingests, which makes the
// directory, too.
func TestOlderReleasesDiskBeforeFirstBlob(t *testing.T) {
	eachOlderRelease(t, func(t *testing.T, r *runtime) {
		var found struct {
			OK     bool
			Checks []check
		}
		code, errOut := run(t, r.command(t, "doctor"), &found)
		seen := 0
		for _, c := range found.Checks {
			if c.Check == "disk" {
				seen++
			}
			if c.Check == "disk" && c.Verdict != "ok" {
				t.Errorf("%+v", c)
			}
		}
		if code != 0 || seen == 0 {
			t.Errorf("doctor: exit code %d, looked at %d file systems: %s", code, seen, errOut)
		}
		_, data := built(t, sample("fresh.example/app:1", 1))
		file := fileOf(t, data)
		for _, args := range [][]string{{"--dry-run"}, {}} { // not unpacked: the snapshotter's directory is there
			var o struct {
				Error *struct{ Reason string } `json:"error"`
			}
			out, _ := r.command(t, "import", append(args, "--no-unpack", "--disk-reserve", "99.9999%", file)...).Output() // the output tells
			if err := json.Unmarshal(out, &o); err != nil || o.Error == nil || o.Error.Reason != "InsufficientDisk" {
				t.Errorf("import %q: %v: %s", args, err, out)
			}
		}
	})
}
