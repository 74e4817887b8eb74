package node

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/reason"
	"github.com/tarlift/tarlift/internal/source"
)

func fullSpec() *v1alpha1.ImageArchiveSpec {
	return &v1alpha1.ImageArchiveSpec{
		Source: v1alpha1.Source{HTTP: &v1alpha1.HTTPSource{
			URL: "https://example.com/a.tar", SecretRef: &v1alpha1.SecretReference{Name: "s"}, CertSecretRef: &v1alpha1.SecretReference{Name: "c"},
		}},
		Digest:      "sha256:1",
		IndexDigest: "sha256:2",
		Images: v1alpha1.ImageSelection{
			Include: []string{"**"}, Exclude: []string{"*:debug"}, Rename: []v1alpha1.Rename{{From: "a/", To: "b/"}},
			BaseName: "example.com/a", DigestReferences: ptr.To(false),
		},
		Unpack: ptr.To(false), Pin: ptr.To(false), ConflictPolicy: v1alpha1.ConflictReplace,
	}
}

// These hashes are in the labels of images on nodes. When one changes, every node of every cluster that upgrades
// imports its archives again, from sources that may be gone.
func TestSpecHashIsForEver(t *testing.T) {
	minimal := &v1alpha1.ImageArchiveSpec{Source: v1alpha1.Source{File: &v1alpha1.FileSource{Path: "a.tar"}}}
	for spec, want := range map[*v1alpha1.ImageArchiveSpec]string{
		minimal:    "0a546bd87ca48e8ddb9d8d58f0c4c677",
		fullSpec(): "8fa7a7f34db99ccfca36ca68de19f55b",
	} {
		if got := specHash(spec); got != want {
			t.Errorf("%+v: %s, want %s", spec.Source, got, want)
		}
	}
}

func TestSpecHash(t *testing.T) {
	base := specHash(fullSpec())
	for what, edit := range map[string]func(*v1alpha1.ImageArchiveSpec){
		"url":              func(s *v1alpha1.ImageArchiveSpec) { s.Source.HTTP.URL += "x" },
		"secret":           func(s *v1alpha1.ImageArchiveSpec) { s.Source.HTTP.SecretRef = nil },
		"source":           func(s *v1alpha1.ImageArchiveSpec) { s.Source = v1alpha1.Source{File: &v1alpha1.FileSource{}} },
		"digest":           func(s *v1alpha1.ImageArchiveSpec) { s.Digest = "" },
		"indexDigest":      func(s *v1alpha1.ImageArchiveSpec) { s.IndexDigest = "" },
		"include":          func(s *v1alpha1.ImageArchiveSpec) { s.Images.Include = nil },
		"exclude":          func(s *v1alpha1.ImageArchiveSpec) { s.Images.Exclude = nil },
		"rename":           func(s *v1alpha1.ImageArchiveSpec) { s.Images.Rename = nil },
		"baseName":         func(s *v1alpha1.ImageArchiveSpec) { s.Images.BaseName = "" },
		"digestReferences": func(s *v1alpha1.ImageArchiveSpec) { s.Images.DigestReferences = nil },
		"unpack":           func(s *v1alpha1.ImageArchiveSpec) { s.Unpack = nil },
		"pin":              func(s *v1alpha1.ImageArchiveSpec) { s.Pin = nil },
		"conflictPolicy":   func(s *v1alpha1.ImageArchiveSpec) { s.ConflictPolicy = v1alpha1.ConflictFail },
	} {
		spec := fullSpec()
		if edit(spec); specHash(spec) == base {
			t.Errorf("%s does not count", what)
		}
	}
	spec := fullSpec()
	spec.NodeSelector, spec.Suspend = &metav1.LabelSelector{}, true
	if specHash(spec) != base {
		t.Error("nodeSelector or suspend counts")
	}
	absent := &v1alpha1.ImageArchiveSpec{}
	defaults := &v1alpha1.ImageArchiveSpec{
		Images: v1alpha1.ImageSelection{DigestReferences: ptr.To(true), Include: []string{}},
		Unpack: ptr.To(true), Pin: ptr.To(true), ConflictPolicy: v1alpha1.ConflictFail,
	}
	if specHash(absent) != specHash(defaults) {
		t.Error("an absent field and its default differ")
	}
}

func TestRequestFor(t *testing.T) {
	a := newArchive("a", 0)
	a.Spec = *fullSpec()
	a.Spec.DeletionPolicy = v1alpha1.DeletionDelete
	want := importer.Request{
		Owner:  importer.Owner{Name: "a", UID: "uid-a", Created: epoch, SpecHash: specHash(&a.Spec), Deletion: importer.DeletionDelete},
		Digest: "sha256:1", IndexDigest: "sha256:2",
		Selection: archive.Selection{
			BaseName: "example.com/a", Include: []string{"**"}, Exclude: []string{"*:debug"}, Rename: []archive.Rename{{From: "a/", To: "b/"}},
		},
		Replace: true, Keep: true,
	}
	if diff := cmp.Diff(want, requestFor(a)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	a.Spec = v1alpha1.ImageArchiveSpec{}
	if r := requestFor(a); !r.Unpack || !r.Pin || r.Replace || !r.Selection.DigestReferences {
		t.Errorf("defaults: %+v", r)
	}
}

func openIn(t *testing.T, s Sources, spec v1alpha1.Source) (source.Blob, error) {
	location, err := s.Resolve(t.Context(), spec)
	if err != nil {
		return nil, err
	}
	return location.Open(t.Context())
}

func changedIn(t *testing.T, s Sources, spec v1alpha1.Source, validator string) (bool, error) {
	location, err := s.Resolve(t.Context(), spec)
	if err != nil {
		return false, err
	}
	return location.Changed(t.Context(), validator)
}

func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.tar"), []byte("bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	file := func(path string) v1alpha1.Source { return v1alpha1.Source{File: &v1alpha1.FileSource{Path: path}} }
	for _, test := range []struct {
		why  string
		dir  string
		spec v1alpha1.Source
		want error
	}{
		{"a file", dir, file("a.tar"), nil},
		{"no file", dir, file("b.tar"), source.ErrNotFound},
		{"a link that leads out", dir, file("link"), source.ErrInvalid},
		{"no archive directory", "", file("a.tar"), source.ErrInvalid},
		{"a kind that a later version may have", dir, v1alpha1.Source{}, source.ErrInvalid},
	} {
		blob, err := openIn(t, Sources{ArchiveDir: test.dir}, test.spec)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.why, err, test.want)
		}
		if err == nil {
			if blob.Size() != 5 {
				t.Errorf("%s: %d bytes", test.why, blob.Size())
			}
			blob.Close()
		}
	}
}

func TestChanged(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.tar"), []byte("bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := v1alpha1.Source{File: &v1alpha1.FileSource{Path: "a.tar"}}
	s := Sources{ArchiveDir: dir}
	b, err := openIn(t, s, spec)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	for validator, want := range map[string]bool{b.Validator(): false, "other": true} {
		if changed, err := changedIn(t, s, spec, validator); changed != want || err != nil {
			t.Errorf("%q: changed %v, %v", validator, changed, err)
		}
	}
	if _, err := changedIn(t, Sources{}, spec, ""); !errors.Is(err, source.ErrInvalid) {
		t.Errorf("without a directory: %v", err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	s.AllowAddresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	web := v1alpha1.Source{HTTP: &v1alpha1.HTTPSource{URL: server.URL + "/a.tar"}}
	if changed, err := changedIn(t, s, web, "other"); !changed || err != nil {
		t.Errorf("http: changed %v, %v", changed, err)
	}
}

// What listens on the node's own loopback trusts whoever gets there, so a spec gets nowhere near it unless the operator
// says so.
func TestOpenHTTPOnLoopback(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Write([]byte("bytes"))
	}))
	defer server.Close()
	spec := v1alpha1.Source{HTTP: &v1alpha1.HTTPSource{URL: server.URL + "/a.tar"}}
	_, err := openIn(t, Sources{}, spec)
	if reason, terminal := reason.Classify(err); reason != v1alpha1.ReasonSourceDenied || !terminal || asked.Load() > 0 {
		t.Errorf("%v is %s, terminal %v; the server was asked %d times", err, reason, terminal, asked.Load())
	}
	allowed := Sources{AllowAddresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	blob, err := openIn(t, allowed, spec)
	if err != nil {
		t.Fatal(err)
	}
	blob.Close()

	proxy, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	allowed.Proxy = http.ProxyURL(proxy)
	before := asked.Load()
	behind := v1alpha1.Source{HTTP: &v1alpha1.HTTPSource{URL: "http://behind.example/a.tar"}}
	if blob, err = openIn(t, allowed, behind); err != nil || asked.Load() == before {
		t.Fatalf("by proxy: %v", err)
	}
	blob.Close()
}

func TestAllowsHost(t *testing.T) {
	for _, test := range []struct {
		hosts, url string
		want       bool
	}{
		{"", "https://a.example", false},
		{" , ", "https:///x", false},
		{"a.example", "https://a.example/x", true},
		{"a.example", "https://A.Example:8443/x", true},
		{"b.example, a.example", "http://a.example", true},
		{"a.example:8443", "https://a.example:8443", true},
		{"a.example:443", "https://a.example", true},
		{"a.example:80", "https://a.example", false},
		{"a.example:8443", "https://a.example", false},
		{"a.example", "https://a.example.evil", false},
		{"a.example", "https://b.a.example", false},
		{"*", "https://a.example", false},
		{"10.0.0.7", "http://10.0.0.7:8080", true},
		{"fd00::1", "http://[fd00::1]:8080", true},
		{"[fd00::1]:8080", "http://[fd00::1]:8080", true},
		{"[fd00::1]", "http://[fd00::1]/x", true},
		{"a.example", "https://b.example/a.example", false},
		{"a.example", "https://a.example@b.example", false},
	} {
		u, err := url.Parse(test.url)
		if err != nil {
			t.Fatal(err)
		}
		if got := allowsHost(test.hosts, u); got != test.want {
			t.Errorf("%q for %s: %v", test.hosts, test.url, got)
		}
	}
}

// The message is all that tells the owner of a Secret what to do. What it says to add must work, and be harmless to copy.
func TestSecretSaysWhichHostToAdd(t *testing.T) {
	s := Sources{Namespace: "ns"}
	for _, test := range []struct {
		hosts, url, says string
		want             error
	}{
		{"", "https://a.example:8443/x", "kubectl annotate secret s --namespace ns tarlift.dev/hosts=a.example:8443:", source.ErrDenied},
		{"", "http://[fd00::1]/x", "tarlift.dev/hosts=[fd00::1]:", source.ErrDenied},
		{"b.example", "https://a.example/x", "add a.example to its annotation tarlift.dev/hosts", source.ErrDenied},
		{"", "https://$(reboot)/x", "ASCII", source.ErrInvalid},
		{"", "https://a;reboot/x", "ASCII", source.ErrInvalid},
		{"files.example", "https://ﬁles.example/x", "ASCII", source.ErrInvalid}, // IDNA would make the same host of it
		{"", "https:///x", "ASCII", source.ErrInvalid},
	} {
		err := s.checkHost("s", test.hosts, test.url)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s with hosts %q: %v, want %q", test.url, test.hosts, err, test.says)
		}
	}
}
