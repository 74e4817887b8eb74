package envtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

const fileSource = "source: {file: {path: a.tar}}\n"

func TestValidation(t *testing.T) {
	long := strings.Repeat("a", 10_000)
	sum := "sha256:" + strings.Repeat("0a", 32)
	http := func(url string) string { return fmt.Sprintf("source: {http: {url: %q}}", url) }
	for _, test := range []struct {
		why   string
		spec  string
		wrong string // part of the field or message that refuses it; empty: accepted
	}{
		{"a file", fileSource, ""},
		{"http", http("http://10.0.0.1/a.tar"), ""},
		{"https, port, path, and a presigned query that holds an @", http("https://s3.example:9000/b/a%20b.tar?X-Sig=a@b"), ""},
		{"an IPv6 address", http("http://[fd00::1]:8080/a.tar"), ""},
		{"an @ in the path is no user", http("https://example.com/a@sha256:00.tar"), ""},
		{"no source at all", "{}", "spec.source"},
		{"a source without a member", "source: {}", "exactly one of http and file"},
		{"two members", "source: {file: {path: a.tar}, http: {url: 'http://a/b'}}", "exactly one of http and file"},
		{"a misspelt member only", "source: {htttp: {url: 'http://a/b'}}", "exactly one of http and file"},
		{"another scheme", http("ftp://example.com/a.tar"), "http or https"},
		{"a scheme that fetches local files", http("file:///etc/shadow"), "http or https"},
		{"no scheme", http("example.com/a.tar"), "http or https"},
		{"no host", http("http:///a.tar"), "with a host"},
		{"a port without a host", http("http://:80/a.tar"), "with a host"},
		{"no URL", http("http://exa mple/a.tar"), "absolute URL"},
		{"user and password", http("https://user:pw@example.com/a.tar"), "credentials"},
		{"a user alone", http("https://user@example.com/a.tar"), "credentials"},
		{"a user hidden before another @", http("https://a@b@example.com/a.tar"), "credentials"},
		{"an endless URL", http("https://example.com/" + long), "spec.source.http.url"},
		{"secrets", "source: {http: {url: 'http://a/b', secretRef: {name: a.b-c}, certSecretRef: {name: x}}}", ""},
		{"an empty secretRef", "source: {http: {url: 'http://a/b', secretRef: {}}}", "name"},
		{"a Secret of another namespace", "source: {http: {url: 'http://a/b', secretRef: {name: ns/x}}}", "secretRef.name"},
		{"a certSecretRef that is no name", "source: {http: {url: 'http://a/b', certSecretRef: {name: X_}}}", "certSecretRef.name"},
		{"a file in a subdirectory", "source: {file: {path: usb/2024..2025/a.tar}}", ""},
		{"an empty path", "source: {file: {path: ''}}", "spec.source.file.path"},
		{"an absolute path", "source: {file: {path: /etc/shadow}}", "relative"},
		{"a path that leads out", "source: {file: {path: a/../../shadow}}", "must not contain .."},
		{"a path that is its parent", "source: {file: {path: ..}}", "must not contain .."},
		{"a path that ends with ..", "source: {file: {path: a/..}}", "must not contain .."},
		{"digests", fileSource + "digest: " + sum + "\nindexDigest: " + sum, ""},
		{"a digest without algorithm", fileSource + "digest: " + sum[7:], "spec.digest"},
		{"a digest of another algorithm", fileSource + "digest: sha512:" + strings.Repeat("0a", 64), "spec.digest"},
		{"an index digest in capitals", fileSource + "indexDigest: " + strings.ToUpper(sum), "spec.indexDigest"},
		{"a digest with more behind it", fileSource + "digest: " + sum + "0", "spec.digest"},
		{"a selection", fileSource + "images: {include: ['**'], exclude: ['*:debug'], baseName: example.com/a}", ""},
		{"an empty glob", fileSource + "images: {include: ['']}", "images.include"},
		{"an empty glob that excludes", fileSource + "images: {exclude: ['']}", "images.exclude"},
		{"an endless glob", fileSource + "images: {include: [" + long + "]}", "images.include"},
		{"an endless base name", fileSource + "images: {baseName: " + long + "}", "images.baseName"},
		{"renames", fileSource + "images: {rename: [{from: a/, to: b/c/}, {from: 'a:1', to: 'b:2'}]}", ""},
		{"a prefix renamed to a name", fileSource + "images: {rename: [{from: a/, to: b}]}", "both end in /"},
		{"a name renamed to a prefix", fileSource + "images: {rename: [{from: a, to: b/}]}", "both end in /"},
		{"a rename to nothing", fileSource + "images: {rename: [{from: a, to: ''}]}", "rename[0].to"},
		{"a rename of nothing", fileSource + "images: {rename: [{to: a}]}", "rename[0].from"},
		{"too many renames", fileSource + "images: {rename: [" + strings.Repeat("{from: a, to: b},", 257) + "]}", "images.rename"},
		{"a selector", fileSource + "nodeSelector: {matchLabels: {a: b}, matchExpressions: [{key: a, operator: NotIn, values: [c]}, {key: b, operator: Exists}]}", ""},
		{"an empty selector", fileSource + "nodeSelector: {}", ""},
		{"an unknown operator", fileSource + "nodeSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}", "operators are"},
		{"In without values", fileSource + "nodeSelector: {matchExpressions: [{key: a, operator: In}]}", "need values"},
		{"Exists with values", fileSource + "nodeSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}", "take none"},
		{"policies", fileSource + "conflictPolicy: Replace\nunpack: false\npin: false\nsuspend: true", ""},
		{"policies of what is there", fileSource + "driftPolicy: Ignore\ndeletionPolicy: Delete\ninterval: 1h30m", ""},
		{"an unknown drift policy", fileSource + "driftPolicy: Fail", "spec.driftPolicy"},
		{"an unknown deletion policy", fileSource + "deletionPolicy: Orphan", "spec.deletionPolicy"},
		{"no interval", fileSource + "interval: 0s", ""},
		{"an interval that would be an attack", fileSource + "interval: 1s", "at least 10s"},
		{"an interval that is no duration", fileSource + "interval: daily", "spec.interval"},
		{"a rollout by default", fileSource + "rollout: {}", ""},
		{"a rollout", fileSource + "rollout: {maxConcurrent: 25%, maxFailed: 0, progressDeadline: 90s}", ""},
		{"a rollout one by one", fileSource + "rollout: {maxConcurrent: 1}", ""},
		{"a rollout of nobody", fileSource + "rollout: {maxConcurrent: 0}", "maxConcurrent"},
		{"a rollout of no percent", fileSource + "rollout: {maxConcurrent: 0%}", "maxConcurrent"},
		{"a rollout of more than all", fileSource + "rollout: {maxConcurrent: 101%}", "maxConcurrent"},
		{"a rollout of a word", fileSource + "rollout: {maxConcurrent: ten}", "maxConcurrent"},
		{"a rollout that is never content", fileSource + "rollout: {maxFailed: -1}", "maxFailed"},
		{"a rollout of more nodes than a number holds", fileSource + "rollout: {maxConcurrent: 3000000000}", "maxConcurrent"},
		{"a rollout that bears more than a number holds", fileSource + "rollout: {maxFailed: 3000000000}", "maxFailed"},
		{"a rollout of endless patience", fileSource + "rollout: {progressDeadline: 5000000h}", "progressDeadline"},
		{"a rollout without patience", fileSource + "rollout: {progressDeadline: 0s}", "progressDeadline"},
		{"an unknown policy", fileSource + "conflictPolicy: Ignore", "spec.conflictPolicy"},
	} {
		t.Run(test.why, func(t *testing.T) {
			err := admin.Create(t.Context(), archiveWith(t, "validation", test.spec), client.DryRunAll)
			switch {
			case test.wrong == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.wrong != "" && !apierrors.IsInvalid(err):
				t.Errorf("got %v, want it refused as invalid", err)
			case test.wrong != "" && !strings.Contains(err.Error(), test.wrong):
				t.Errorf("refused for another reason than %q: %v", test.wrong, err)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	o := archiveWith(t, "defaults", fileSource+"rollout: {}")
	create(t, o)
	got := o.Object["spec"]
	want := map[string]any{
		"source":         map[string]any{"file": map[string]any{"path": "a.tar"}},
		"images":         map[string]any{"digestReferences": true},
		"unpack":         true,
		"pin":            true,
		"conflictPolicy": "Fail",
		"driftPolicy":    "Reimport",
		"deletionPolicy": "Unpin",
		"rollout":        map[string]any{"maxConcurrent": "10%", "maxFailed": int64(1), "progressDeadline": "10m"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
}

// A fresh object must not look current to tools that wait by kstatus: its status has to be behind its generation,
// whichever client created it.
func TestFreshObjectIsBehind(t *testing.T) {
	for name, o := range map[string]client.Object{
		"fresh-yaml":  archiveWith(t, "fresh-yaml", fileSource),
		"fresh-typed": typed[v1alpha1.ImageArchive](t, archiveWith(t, "fresh-typed", fileSource)),
	} {
		create(t, o)
		var got v1alpha1.ImageArchive
		if err := admin.Get(t.Context(), client.ObjectKey{Name: name}, &got); err != nil {
			t.Fatal(err)
		}
		if got.Generation != 1 || got.Status.ObservedGeneration != -1 {
			t.Errorf("%s: generation %d, observed %d; want 1 and -1", name, got.Generation, got.Status.ObservedGeneration)
		}
	}
}

func TestPrinterColumns(t *testing.T) {
	archive := typed[v1alpha1.ImageArchive](t, archiveWith(t, "columns", fileSource))
	create(t, archive)
	archive.Status = v1alpha1.ImageArchiveStatus{
		ObservedGeneration: 1,
		Conditions: []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Imported", Message: "m",
			LastTransitionTime: metav1.Now()}},
		Artifact:   &v1alpha1.Artifact{Size: 47185920, DisplaySize: "45MiB"},
		ImageCount: 3,
		Progress:   "100%",
		Nodes:      &v1alpha1.NodeCounts{Desired: 3, Ready: 3, Summary: "3/3"},
	}
	if err := admin.Status().Update(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	columns, row := table(t, "imagearchives", "columns")
	if want := []string{"Name", "Ready", "Reason", "Nodes", "Progress", "Images", "Size", "Age"}; !slices.Equal(columns, want) {
		t.Errorf("columns %q, want %q", columns, want)
	}
	if want := []string{"columns", "True", "Imported", "3/3", "100%", "3", "45MiB"}; !slices.Equal(row[:7], want) {
		t.Errorf("row %q, want %q", row[:7], want)
	}

	state := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: "columns"}}
	create(t, state)
	state.Status = v1alpha1.NodeImageStateStatus{
		Containerd: &v1alpha1.RuntimeInfo{Version: "v2.4.2", Snapshotter: "overlayfs", Platform: "linux/amd64"},
		Summary:    "1/2",
	}
	if err := admin.Status().Update(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	columns, row = table(t, "nodeimagestates", "columns")
	if want := []string{"Name", "Ready", "Containerd", "Snapshotter", "Platform", "Age"}; !slices.Equal(columns, want) {
		t.Errorf("columns %q, want %q", columns, want)
	}
	if want := []string{"columns", "1/2", "v2.4.2", "overlayfs", "linux/amd64"}; !slices.Equal(row[:5], want) {
		t.Errorf("row %q, want %q", row[:5], want)
	}
}

func TestNames(t *testing.T) {
	for crd, short := range map[string]string{"imagearchives": "ia", "nodeimagestates": "nis"} {
		var o unstructured.Unstructured
		o.SetAPIVersion("apiextensions.k8s.io/v1")
		o.SetKind("CustomResourceDefinition")
		if err := admin.Get(t.Context(), client.ObjectKey{Name: crd + ".tarlift.dev"}, &o); err != nil {
			t.Fatal(err)
		}
		shorts, _, _ := unstructured.NestedStringSlice(o.Object, "status", "acceptedNames", "shortNames")
		categories, _, _ := unstructured.NestedStringSlice(o.Object, "status", "acceptedNames", "categories")
		scope, _, _ := unstructured.NestedString(o.Object, "spec", "scope")
		if !slices.Equal(shorts, []string{short}) || !slices.Equal(categories, []string{"tarlift"}) || scope != "Cluster" {
			t.Errorf("%s: short names %q, categories %q, scope %s", crd, shorts, categories, scope)
		}
	}
}

// table asks for one object as kubectl does, and returns the columns that it prints without -o wide.
func table(t *testing.T, resource, name string) (columns, row []string) {
	t.Helper()
	config := rest.CopyConfig(adminConfig)
	config.GroupVersion = &v1alpha1.GroupVersion
	config.APIPath = "/apis"
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	c, err := rest.RESTClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	body, err := c.Get().Resource(resource).Name(name).
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var answer metav1.Table
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	for i, c := range answer.ColumnDefinitions {
		if c.Priority == 0 {
			columns = append(columns, c.Name)
			row = append(row, fmt.Sprint(answer.Rows[0].Cells[i]))
		}
	}
	return columns, row
}
