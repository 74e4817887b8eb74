package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/test/stage"
)

// TestEndToEnd runs its parts in order on one cluster: later parts build on what earlier ones left.
func TestEndToEnd(t *testing.T) {
	e := newEnv(t, nil)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *env)
	}{
		{"a newcomer follows the quickstart", quickstart},
		{"installed again", installed},
		{"first import", firstImport},
		{"helm test", helmTest},
		{"the kubelet has every name, pinned", kubeletView},
		{"pods run without a pull", pods},
		{"the same archive again moves nothing", sameArchiveAgain},
		{"an upgrade moves its delta", upgrade},
		{"an agent killed during an import continues", agentKilled},
		{"containerd restarted during an import", containerdRestarted},
		{"a node whose source fails", sourceFails},
		{"refused archives stall and change nothing", refused},
		{"suspended", suspended},
		{"the API server restarted", apiServerRestarted},
		{"deleted", deleted},
		{"no room beside the reserve", reserved},
		{"source gone and agents restarted", sourceGone},
		{"uninstalled and installed again", reinstalled},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.run(t, e) }) {
			describe(t, e)
			return
		}
	}
}

// describe prints what an operator would look at.
func describe(t *testing.T, e *env) {
	t.Helper()
	for _, command := range []string{
		"get imagearchives,nodeimagestates,pods -A -o wide", "get nodeimagestates -o yaml",
		"logs -n tarlift-system -l app.kubernetes.io/component=node --tail=30 --prefix",
		"logs -n tarlift-system -l app.kubernetes.io/component=controller --tail=30",
	} {
		out, err := e.Run(t.Context(), "kubectl", strings.Fields(command)...)
		t.Logf("kubectl %s (%v)\n%s", command, err, out)
	}
}

func installed(t *testing.T, e *env) {
	if err := e.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func firstImport(t *testing.T, e *env) {
	if err := stage.WriteArchive(t.Context(), filepath.Join(e.Files, "demo.tar"), "1.0"); err != nil {
		t.Fatal(err)
	}
	needed := e.missing(t, e.Nodes[0], "demo.tar")
	info, err := os.Stat(filepath.Join(e.Files, "demo.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if needed < 10*mib || needed > info.Size()*9/10 {
		t.Fatalf("needs %d of %d bytes: no test of platforms", needed, info.Size())
	}
	e.Server.Reset()
	e.apply(t, "demo", "demo.tar")
	a := e.ready(t, "demo")
	if a.Status.ImageCount != 3 || a.Status.Artifact == nil || a.Status.Artifact.Size != info.Size() || a.Status.Artifact.IndexDigest == "" ||
		a.Status.Nodes.Summary != "3/3" {
		t.Errorf("status %s", asJSON(a.Status))
	}
	for _, n := range e.Nodes {
		e.sentAtMost(t, n, needed*105/100+mib)
		s := e.on(t.Context(), n, "demo")
		if s == nil || !s.Ready || s.Attempts != 1 || s.LastError != nil || s.CompletionTime == nil {
			t.Errorf("%s reports %s", n.Name, asJSON(s))
		}
	}
	table, err := e.Run(t.Context(), "kubectl", "get", "ia")
	if err != nil {
		t.Fatal(err)
	}
	for _, column := range []string{"READY", "REASON", "NODES", "PROGRESS", "IMAGES", "SIZE", "AGE", "True", "3/3"} {
		if !strings.Contains(table, column) {
			t.Errorf("kubectl get ia lacks %s:\n%s", column, table)
		}
	}
	eventually(t, func(ctx context.Context) string {
		events, err := e.Run(ctx, "kubectl", "get", "events", "-A", "-o", "jsonpath={range .items[*]}{.reason} {.message}{\"\\n\"}{end}")
		if err == nil && strings.Contains(events, v1alpha1.ReasonImported+" ") && strings.Contains(events, "3 images") {
			return ""
		}
		return fmt.Sprintf("no Event tells of 3 images: %s %v", events, err)
	})
}

func kubeletView(t *testing.T, e *env) {
	for _, n := range e.Nodes {
		for _, repository := range []string{stage.Greeter, stage.Toolbox, stage.Library} {
			tagged := criImage(t, n, repository+":1.0")
			if tagged == nil || !tagged.Pinned {
				t.Fatalf("%s: CRI has %s as %v", n.Name, repository, tagged)
			}
			for _, ref := range tagged.RepoDigests {
				if byDigest := criImage(t, n, ref); byDigest == nil || byDigest.Id != tagged.Id {
					t.Errorf("%s: CRI has %s as %v", n.Name, ref, byDigest)
				}
			}
			// The third name of a pull, which the kubelet asks for to mount the image as a volume.
			if id := image(t, n, tagged.Id); id.Labels()["io.cri-containerd.pinned"] != "pinned" {
				t.Errorf("%s: %s has the labels %v", n.Name, tagged.Id, id.Labels())
			}
			if len(tagged.RepoDigests) == 0 {
				t.Errorf("%s: %s has no digest reference", n.Name, repository)
			}
		}
	}
}

func pods(t *testing.T, e *env) {
	byDigest := ""
	for _, name := range names(t, e.Nodes[0]) {
		if strings.HasPrefix(name, stage.Greeter+"@") {
			byDigest = strings.Fields(name)[0]
		}
	}
	if byDigest == "" {
		t.Fatal("no name@digest")
	}
	for _, manifest := range []string{
		stage.DaemonSet("by-tag", stage.Greeter+":1.0"),
		stage.DaemonSet("by-digest", byDigest),
		stage.WithImageVolume("image-volume", stage.Greeter+":1.0", stage.Toolbox+":1.0", "go"),
	} {
		if err := e.Apply(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"by-tag", "by-digest", "image-volume"} {
		eventually(t, func(ctx context.Context) string {
			var ds appsv1.DaemonSet
			if err := e.kube.Get(ctx, client.ObjectKey{Namespace: "default", Name: name}, &ds); err != nil {
				return err.Error()
			}
			if ds.Status.NumberReady == 3 {
				return ""
			}
			return fmt.Sprintf("%s: %s", name, asJSON(ds.Status))
		})
	}
}

func sameArchiveAgain(t *testing.T, e *env) {
	e.Server.Reset()
	e.apply(t, "demo-again", "demo.tar")
	e.ready(t, "demo-again")
	for _, n := range e.Nodes {
		e.sentAtMost(t, n, mib-1)
	}
}

func upgrade(t *testing.T, e *env) {
	if err := stage.WriteArchive(t.Context(), filepath.Join(e.Files, "demo-2.tar"), "2.0"); err != nil {
		t.Fatal(err)
	}
	needed := e.missing(t, e.Nodes[0], "demo-2.tar")
	if needed == 0 || needed > 4*mib {
		t.Fatalf("the delta is %d bytes", needed)
	}
	e.Server.Reset()
	e.apply(t, "demo", "demo-2.tar")
	a := e.ready(t, "demo")
	if a.Generation != 2 {
		t.Errorf("generation %d", a.Generation)
	}
	for _, n := range e.Nodes {
		e.sentAtMost(t, n, needed*105/100+mib)
		if i := criImage(t, n, stage.Greeter+":2.0"); i == nil || !i.Pinned {
			t.Errorf("%s: CRI has the new image as %v", n.Name, i)
		}
	}
}

// during applies an archive of 32 MiB whose transfer takes about 4 s, and calls fault when node-a is in the middle.
func during(t *testing.T, e *env, name string, fault func()) {
	e.write(t, name+".tar", "e2e.tarlift.dev/"+name+":1", name+"-a", name+"-b", name+"-c", name+"-d")
	n := e.Nodes[0]
	needed := e.missing(t, n, name+".tar")
	e.Server.Reset()
	e.Server.Limit(2 * mib) // of four connections each
	e.apply(t, name, name+".tar")
	eventually(t, func(ctx context.Context) string {
		// What the node has not reported before the fault, it cannot count as an attempt after it.
		if s := e.on(ctx, n, name); s != nil && s.Attempts > 0 && e.Server.Sent(n.IP) > needed/3 {
			return ""
		}
		return "the import has not come far enough"
	})
	if e.Server.Sent(n.IP) > needed*9/10 {
		t.Fatal("the import was too fast for this test")
	}
	fault()
	e.Server.Limit(0)
	e.ready(t, name)
	// Twice the blob that was being written, at most: what a kill took before it was synced.
	e.sentAtMost(t, n, needed+8*mib+2*mib)
	if s := e.on(t.Context(), n, name); s == nil || s.Attempts < 2 {
		t.Errorf("%s reports %s: no second attempt, so there was no fault", n.Name, asJSON(s))
	}
}

func agentKilled(t *testing.T, e *env) {
	during(t, e, "killed", func() { killAgent(t, e.Nodes[0]) })
}

func containerdRestarted(t *testing.T, e *env) {
	during(t, e, "restarted", func() {
		if err := e.Nodes[0].Containerd.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func sourceFails(t *testing.T, e *env) {
	e.write(t, "partly.tar", "e2e.tarlift.dev/partly:1", "partly")
	bad := e.Nodes[1]
	e.Server.Deny(bad.IP)
	e.apply(t, "partly", "partly.tar")
	eventually(t, func(context.Context) string {
		s := e.archive(t, "partly").Status
		if s.Nodes != nil && s.Nodes.Ready == 2 && s.Nodes.Failed == 1 && len(s.Failures) == 1 &&
			s.Failures[0].Node == bad.Name && s.Failures[0].Reason == v1alpha1.ReasonSourceUnavailable &&
			meta.IsStatusConditionFalse(s.Conditions, v1alpha1.ConditionReady) &&
			!meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionStalled) {
			return ""
		}
		return asJSON(s)
	})
	e.Server.Allow(bad.IP)
	annotate(t, e, "partly")
	e.ready(t, "partly")
}

// annotate asks every node to look at once.
func annotate(t *testing.T, e *env, name string) {
	t.Helper()
	_, err := e.Run(t.Context(), "kubectl", "annotate", "--overwrite", "imagearchive", name,
		v1alpha1.AnnotationReconcileRequestedAt+"="+time.Now().Format(time.RFC3339Nano))
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t *testing.T, e *env) {
	before := names(t, e.Nodes[0])
	whole, err := os.ReadFile(filepath.Join(e.Files, "partly.tar"))
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{
		"page.tar": []byte("<!doctype html><title>login</title>" + strings.Repeat("\n", 600)),
		"cut.tar":  whole[:len(whole)/2],
	} {
		if err := os.WriteFile(filepath.Join(e.Files, file), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The greeter's name with other content: the first archive's.
	e.write(t, "conflict.tar", stage.Greeter+":1.0", "conflict")
	zeros := strings.Repeat("0", 64)
	for _, tc := range []struct{ name, file, spec, reason string }{
		{"page", "page.tar", "", v1alpha1.ReasonArchiveInvalid},
		{"cut", "cut.tar", "", v1alpha1.ReasonTruncated},
		{"index-digest", "partly.tar", "  indexDigest: sha256:" + zeros + "\n", v1alpha1.ReasonDigestMismatch},
		{"digest", "partly.tar", "  digest: sha256:" + zeros + "\n", v1alpha1.ReasonDigestMismatch},
		{"conflict", "conflict.tar", "", v1alpha1.ReasonNameConflict},
		{"absent", "absent.tar", "", v1alpha1.ReasonSourceNotFound},
	} {
		e.apply(t, "refused-"+tc.name, tc.file, tc.spec)
	}
	for _, tc := range []struct {
		name, reason string
		stalled      bool
	}{
		{"page", v1alpha1.ReasonArchiveInvalid, true},
		{"cut", v1alpha1.ReasonTruncated, true},
		{"index-digest", v1alpha1.ReasonDigestMismatch, true},
		{"digest", v1alpha1.ReasonDigestMismatch, true},
		{"conflict", v1alpha1.ReasonNameConflict, true},
		{"absent", v1alpha1.ReasonSourceNotFound, false},
	} {
		eventually(t, func(context.Context) string {
			s := e.archive(t, "refused-"+tc.name).Status
			failures := slices.DeleteFunc(slices.Clone(s.Failures), func(f v1alpha1.NodeFailure) bool { return f.Reason != tc.reason })
			if len(failures) == 3 && meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionStalled) == tc.stalled &&
				meta.IsStatusConditionFalse(s.Conditions, v1alpha1.ConditionReady) {
				return ""
			}
			return tc.name + ": " + asJSON(s)
		})
	}
	if after := names(t, e.Nodes[0]); !slices.Equal(before, after) {
		t.Errorf("names before %v\nafter %v", before, after)
	}
	if _, err := e.Run(t.Context(), "kubectl", "delete", "imagearchive", "refused-page", "refused-cut", "refused-index-digest",
		"refused-digest", "refused-conflict", "refused-absent"); err != nil {
		t.Fatal(err)
	}
}

func suspended(t *testing.T, e *env) {
	e.write(t, "later.tar", "e2e.tarlift.dev/later:1", "later")
	e.apply(t, "later", "later.tar", "  suspend: true\n")
	eventually(t, func(context.Context) string {
		s := e.archive(t, "later").Status
		if c := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady); c != nil && c.Reason == v1alpha1.ReasonSuspended {
			return ""
		}
		return asJSON(s)
	})
	if i := criImage(t, e.Nodes[0], "e2e.tarlift.dev/later:1"); i != nil {
		t.Errorf("imported while suspended: %v", i)
	}
	e.apply(t, "later", "later.tar", "  suspend: false\n")
	e.ready(t, "later")
}

func apiServerRestarted(t *testing.T, e *env) {
	if err := e.APIServer.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.write(t, "after.tar", "e2e.tarlift.dev/after:1", "after")
	e.apply(t, "after", "after.tar")
	e.ready(t, "after")
	e.ready(t, "demo")
}

func deleted(t *testing.T, e *env) {
	if _, err := e.Run(t.Context(), "kubectl", "delete", "imagearchive", "after"); err != nil {
		t.Fatal(err)
	}
	for _, n := range e.Nodes {
		eventually(t, func(ctx context.Context) string {
			if s := e.on(ctx, n, "after"); s != nil {
				return n.Name + " still reports it"
			}
			return ""
		})
		has(t, n, "e2e.tarlift.dev/after:1", "unpinned")
	}
}

// An agent in a pod sees containerd's file system, although nothing of it is mounted there.
func reserved(t *testing.T, e *env) {
	if err := e.Install(t.Context(), "node.diskReserve=99%"); err != nil {
		t.Fatal(err)
	}
	e.Server.Reset()
	e.write(t, "large.tar", "e2e.tarlift.dev/large:1", "large")
	e.apply(t, "large", "large.tar")
	for _, n := range e.Nodes {
		eventually(t, func(ctx context.Context) string {
			s := e.on(ctx, n, "large")
			if s == nil || s.LastError == nil {
				return n.Name + " has not tried"
			}
			if s.LastError.Reason != v1alpha1.ReasonInsufficientDisk || !strings.Contains(s.LastError.Message, "must stay free") {
				return n.Name + " says " + asJSON(s.LastError)
			}
			return ""
		})
	}
	if err := e.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	now := v1alpha1.AnnotationReconcileRequestedAt + "=" + time.Now().Format(time.RFC3339)
	if _, err := e.Run(t.Context(), "kubectl", "annotate", "imagearchive", "large", now); err != nil {
		t.Fatal(err)
	}
	e.ready(t, "large")
}

// Done is done: what was imported needs its source no more.
func sourceGone(t *testing.T, e *env) {
	var before []v1alpha1.ImageArchive
	for _, name := range []string{"demo", "demo-again", "later"} {
		before = append(before, *e.ready(t, name))
	}
	if err := e.Server.Close(); err != nil {
		t.Fatal(err)
	}
	e.Server.Reset()
	restarted := metav1.NewTime(time.Now().Truncate(time.Second)) // what creation times have
	if _, err := e.Run(t.Context(), "kubectl", "rollout", "restart", "-n", stage.Namespace, "daemonset/tarlift-node", "deployment/tarlift-controller"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) string {
		var pods corev1.PodList
		if err := e.kube.List(ctx, &pods, client.InNamespace(stage.Namespace)); err != nil {
			return err.Error()
		}
		ready := 0
		for _, p := range pods.Items {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil && !p.CreationTimestamp.Before(&restarted) {
					ready++
				}
			}
		}
		if ready == 5 {
			return ""
		}
		return fmt.Sprintf("%d of 5 pods are new and ready", ready)
	})
	// The new agents have looked when they did what only they could do.
	if err := e.Apply(t.Context(), e.Archive("unreachable", "none.tar")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) string {
		for _, n := range e.Nodes {
			if s := e.on(ctx, n, "unreachable"); s == nil || s.LastError == nil {
				return n.Name + " has not tried"
			}
		}
		return ""
	})
	for _, a := range before {
		now := e.archive(t, a.Name)
		was := meta.FindStatusCondition(a.Status.Conditions, v1alpha1.ConditionReady)
		is := meta.FindStatusCondition(now.Status.Conditions, v1alpha1.ConditionReady)
		if is == nil || is.Status != metav1.ConditionTrue || !is.LastTransitionTime.Equal(&was.LastTransitionTime) {
			t.Errorf("%s: Ready was %s, is %s", a.Name, asJSON(was), asJSON(is))
		}
		for _, n := range e.Nodes {
			if s := e.on(t.Context(), n, a.Name); s == nil || !s.Ready || s.LastError != nil {
				t.Errorf("%s reports of %s: %s", n.Name, a.Name, asJSON(s))
			}
		}
	}
	for _, n := range e.Nodes {
		e.sentAtMost(t, n, 0)
	}
}
