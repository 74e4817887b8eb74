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

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/stage"
)

// checkInterval of the agents in these tests; what events do not tell is noticed by then.
const checkInterval = 15 * time.Second

// healTime is how long a loss may last.
const healTime = time.Minute

// TestFleet shows that nodes stay as ImageArchives want them. Its parts use archives of their own.
func TestFleet(t *testing.T) {
	e := newEnv(t, nil)
	if err := e.Install(t.Context(), "node.checkInterval="+checkInterval.String()); err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct {
		name string
		run  func(*testing.T, *env)
	}{
		{"losses are only reported where that is wanted", ignored},
		{"losses are healed", healed},
		{"the last owner's policy counts", owners},
		{"images in use outlive their archive", inUse},
		{"an agent that was away cleans up", agentAway},
		{"a changed archive drops names", dropped},
		{"a source that changes is imported again", changed},
		{"one node at a time", oneByOne},
		{"a rollout stops at failures", stopped},
		{"a silent node's place goes to others", silent},
		{"imports do without the API server", serverAway},
		{"a node that is gone counts no more", nodeGone},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.run(t, e) }) {
			describe(t, e)
			return
		}
	}
}

// inNamespace puts calls of containerd where the kubelet's images are.
func inNamespace(t *testing.T) context.Context {
	return namespaces.WithNamespace(t.Context(), "k8s.io")
}

// image is what a node has under a name.
func image(t *testing.T, n *cluster.Node, name string) containerd.Image {
	t.Helper()
	i, err := nodeClient(t, n).GetImage(inNamespace(t), name)
	if err != nil {
		t.Fatalf("%s: %v", n.Name, err)
	}
	return i
}

// lacks says what a node lacks of an image that it should have whole, empty for nothing.
func lacks(t *testing.T, n *cluster.Node, want images.Image) string {
	t.Helper()
	ctx := inNamespace(t)
	got, err := nodeClient(t, n).GetImage(ctx, want.Name)
	if errdefs.IsNotFound(err) {
		return "there is no " + want.Name
	}
	if err != nil {
		t.Fatal(err)
	}
	if got.Target().Digest != want.Target.Digest {
		return want.Name + " is " + got.Target().Digest.String()
	}
	if got.Labels()["io.cri-containerd.pinned"] != want.Labels["io.cri-containerd.pinned"] {
		return want.Name + " is not pinned"
	}
	available, _, _, missing, err := images.Check(ctx, got.ContentStore(), got.Target(), platforms.Only(platforms.DefaultSpec()))
	if err != nil || !available || len(missing) > 0 {
		return fmt.Sprintf("%s lacks %d blobs (%v)", want.Name, len(missing), err)
	}
	unpacked, err := got.IsUnpacked(ctx, "overlayfs")
	if err != nil || !unpacked {
		return fmt.Sprintf("%s is not unpacked (%v)", want.Name, err)
	}
	return ""
}

// removed deletes a name as `ctr images rm --sync` does.
func removed(t *testing.T, n *cluster.Node, name string) {
	t.Helper()
	if err := nodeClient(t, n).ImageService().Delete(inNamespace(t), name, images.SynchronousDelete()); err != nil {
		t.Fatal(err)
	}
}

// removedByCRI deletes an image as `crictl rmi` and the kubelet do.
func removedByCRI(t *testing.T, n *cluster.Node, name string) {
	t.Helper()
	conn, ok := nodeClient(t, n).Conn().(grpc.ClientConnInterface)
	if !ok {
		t.Fatal("no connection")
	}
	_, err := runtimeapi.NewImageServiceClient(conn).RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		t.Fatal(err)
	}
}

// reported waits until a node says of an archive that Ready has this reason.
func (e *env) reported(t *testing.T, n *cluster.Node, name, reason string) {
	t.Helper()
	eventually(t, func(ctx context.Context) string {
		s := e.on(ctx, n, name)
		if s != nil {
			if c := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady); c != nil && c.Reason == reason {
				return ""
			}
		}
		return fmt.Sprintf("%s reports %s, not %s", n.Name, asJSON(s), reason)
	})
}

// has waits until CRI has an image with or without a pin, or has it not.
func has(t *testing.T, n *cluster.Node, name, what string) {
	t.Helper()
	eventually(t, func(context.Context) string {
		is := "nothing"
		if i := criImage(t, n, name); i != nil {
			if is = "unpinned"; i.Pinned {
				is = "pinned"
			}
		}
		if is == what {
			return ""
		}
		return fmt.Sprintf("%s has %s as %s, not %s", n.Name, name, is, what)
	})
}

func (e *env) remove(t *testing.T, archives ...string) {
	t.Helper()
	if _, err := e.Run(t.Context(), "kubectl", append([]string{"delete", "imagearchive"}, archives...)...); err != nil {
		t.Fatal(err)
	}
}

const ignoredName = "e2e.tarlift.dev/ignored:1"

func ignored(t *testing.T, e *env) {
	e.write(t, "ignored.tar", ignoredName, "ignored")
	e.apply(t, "ignored", "ignored.tar", "  driftPolicy: Ignore\n")
	e.ready(t, "ignored")
	n := e.Nodes[0]
	want := image(t, n, ignoredName).Metadata()
	removed(t, n, ignoredName)
	e.reported(t, n, "ignored", v1alpha1.ReasonDrifted)
	eventually(t, func(context.Context) string {
		s := e.archive(t, "ignored").Status
		if meta.IsStatusConditionFalse(s.Conditions, v1alpha1.ConditionReady) && s.Nodes.Ready == 2 {
			return ""
		}
		return asJSON(s)
	})
	time.Sleep(checkInterval + 2*time.Second) // time to heal, were it wanted
	if lacks(t, n, want) == "" {
		t.Fatal("healed, though driftPolicy is Ignore")
	}
	e.apply(t, "ignored", "ignored.tar", "  driftPolicy: Reimport\n")
	e.ready(t, "ignored")
	if what := lacks(t, n, want); what != "" {
		t.Error(what)
	}
}

func healed(t *testing.T, e *env) {
	const name, other = "e2e.tarlift.dev/healed:1", "e2e.tarlift.dev/other:1"
	e.write(t, "healed.tar", name, "healed-a", "healed-b")
	e.write(t, "other.tar", other, "other")
	e.apply(t, "healed", "healed.tar")
	e.apply(t, "other", "other.tar")
	e.ready(t, "healed")
	e.ready(t, "other")
	n := e.Nodes[1]
	want := image(t, n, name)
	whole, err := os.Stat(filepath.Join(e.Files, "healed.tar"))
	if err != nil {
		t.Fatal(err)
	}
	service := func() images.Store { return nodeClient(t, n).ImageService() }
	manifest, err := images.Manifest(inNamespace(t), want.ContentStore(), want.Target(), platforms.Only(platforms.DefaultSpec()))
	if err != nil {
		t.Fatal(err)
	}
	update := func(i images.Image, paths ...string) {
		t.Helper()
		if _, err := service().Update(inNamespace(t), i, paths...); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		what   string
		damage func()
		read   int64 // at most, of the source
	}{
		// First, since no event tells of it, and since what is lost again and again is mended ever later.
		{"a blob", func() {
			if err := want.ContentStore().Delete(inNamespace(t), manifest.Layers[1].Digest); err != nil {
				t.Fatal(err)
			}
		}, 8*mib + 2*mib},
		{"a name", func() { removed(t, n, name) }, whole.Size() + mib},
		{"all names, by CRI", func() { removedByCRI(t, n, name) }, whole.Size() + mib},
		{"a pin", func() {
			update(images.Image{Name: name, Labels: map[string]string{"io.cri-containerd.pinned": ""}}, "labels.io.cri-containerd.pinned")
		}, 0},
		{"a target", func() {
			update(images.Image{Name: name, Target: image(t, n, other).Target()}, "target")
		}, mib},
		{"a target, and all labels with it", func() { // ctr images tag --force
			removed(t, n, name)
			_, err := service().Create(inNamespace(t), images.Image{Name: name, Target: image(t, n, other).Target()})
			if err != nil {
				t.Fatal(err)
			}
		}, whole.Size() + mib},
		{"a snapshot", func() {
			diffIDs, err := want.RootFS(inNamespace(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := nodeClient(t, n).SnapshotService("overlayfs").Remove(inNamespace(t), identity.ChainID(diffIDs).String()); err != nil {
				t.Fatal(err)
			}
		}, mib},
	} {
		e.Server.Reset()
		tc.damage()
		if lacks(t, n, want.Metadata()) == "" {
			t.Fatalf("%s is lost, and nothing is missing", tc.what)
		}
		began := time.Now()
		eventually(t, func(context.Context) string { return lacks(t, n, want.Metadata()) })
		took := time.Since(began)
		t.Logf("%s: healed after %s, %d bytes read", tc.what, took.Round(100*time.Millisecond), e.Server.Sent(n.IP))
		if took > healTime {
			t.Errorf("%s: healed after %s, more than %s", tc.what, took, healTime)
		}
		e.sentAtMost(t, n, tc.read)
		if others := e.Server.Asked(e.Nodes[0].IP) + e.Server.Asked(e.Nodes[2].IP); others > 0 {
			t.Errorf("%s: %d requests of nodes that lost nothing", tc.what, others)
		}
		e.ready(t, "healed")
		e.ready(t, "other")
	}
	eventually(t, func(ctx context.Context) string {
		events, err := e.Run(ctx, "kubectl", "get", "events", "-A", "--field-selector", "reason="+v1alpha1.ReasonDrifted, "-o", "jsonpath={.items[*].message}")
		if err == nil && strings.Contains(events, "healed") {
			return ""
		}
		return fmt.Sprintf("no Event tells of a loss: %s %v", events, err)
	})
}

func owners(t *testing.T, e *env) {
	for _, policy := range []struct{ policy, first, last string }{
		{"Retain", "pinned", "pinned"},
		{"Unpin", "pinned", "unpinned"},
		{"Delete", "pinned", "nothing"},
	} {
		// An image of its own: what the archives before have left is somebody's else, and given back as it was.
		own := "owned-" + strings.ToLower(policy.policy)
		name := "e2e.tarlift.dev/" + own + ":1"
		e.write(t, "owned.tar", name, own)
		for _, archive := range []string{"owner-a", "owner-b"} {
			e.apply(t, archive, "owned.tar", "  deletionPolicy: "+policy.policy+"\n")
		}
		e.ready(t, "owner-a")
		e.ready(t, "owner-b")
		layer := image(t, e.Nodes[0], name)
		manifest, err := images.Manifest(inNamespace(t), layer.ContentStore(), layer.Target(), platforms.Only(platforms.DefaultSpec()))
		if err != nil {
			t.Fatal(err)
		}
		e.remove(t, "owner-a")
		for _, n := range e.Nodes {
			eventually(t, func(ctx context.Context) string {
				if e.on(ctx, n, "owner-a") != nil {
					return n.Name + " still reports owner-a"
				}
				return ""
			})
			has(t, n, name, policy.first)
		}
		e.remove(t, "owner-b")
		for _, n := range e.Nodes {
			has(t, n, name, policy.last)
		}
		eventually(t, func(context.Context) string {
			_, err := nodeClient(t, e.Nodes[0]).ContentStore().Info(inNamespace(t), manifest.Layers[0].Digest)
			if gone := errdefs.IsNotFound(err); gone != (policy.policy == "Delete") {
				return fmt.Sprintf("%s: the layer is gone: %t", policy.policy, gone)
			}
			return ""
		})
	}
}

// demo's images are some that run.
func inUse(t *testing.T, e *env) {
	if err := stage.WriteArchive(t.Context(), filepath.Join(e.Files, "used.tar"), "1.0"); err != nil {
		t.Fatal(err)
	}
	e.apply(t, "used", "used.tar", "  deletionPolicy: Delete\n")
	e.ready(t, "used")
	if err := e.Apply(t.Context(), stage.DaemonSet("user", stage.Greeter+":1.0")); err != nil {
		t.Fatal(err)
	}
	running := func(ctx context.Context) string {
		var ds appsv1.DaemonSet
		if err := e.kube.Get(ctx, client.ObjectKey{Namespace: "default", Name: "user"}, &ds); err != nil {
			return err.Error()
		}
		if ds.Status.NumberReady == 3 {
			return ""
		}
		return asJSON(ds.Status)
	}
	eventually(t, running)
	e.remove(t, "used")
	for _, n := range e.Nodes {
		has(t, n, stage.Toolbox+":1.0", "nothing") // the library has the same layers as the greeter, and counts as used
		has(t, n, stage.Greeter+":1.0", "unpinned")
	}
	if missing := running(t.Context()); missing != "" {
		t.Error(missing)
	}
	eventually(t, func(ctx context.Context) string {
		events, err := e.Run(ctx, "kubectl", "get", "events", "-A", "-o", "jsonpath={.items[*].message}")
		if err == nil && strings.Contains(events, "containers use") {
			return ""
		}
		return fmt.Sprintf("no Event tells of an image in use: %s %v", events, err)
	})
	// It goes when no container uses it any more.
	if _, err := e.Run(t.Context(), "kubectl", "delete", "daemonset", "user", "--wait"); err != nil {
		t.Fatal(err)
	}
	for _, n := range e.Nodes {
		has(t, n, stage.Greeter+":1.0", "nothing")
	}
}

// agents lets the node agents run, or removes them from all nodes.
func (e *env) agents(t *testing.T, run bool) {
	t.Helper()
	selector := "null"
	if !run {
		selector = `{"e2e.tarlift.dev/no-such":"node"}`
	}
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"nodeSelector":%s}}}}`, selector)
	if _, err := e.Run(t.Context(), "kubectl", "patch", "-n", stage.Namespace, "daemonset/tarlift-node", "--type=merge", "-p", patch); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Run(t.Context(), "kubectl", "rollout", "status", "-n", stage.Namespace, "daemonset/tarlift-node", "--timeout=3m"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) string {
		pods, err := e.Run(ctx, "kubectl", "get", "pods", "-n", stage.Namespace, "-l", "app.kubernetes.io/component=node", "-o", "name")
		if n := strings.Count(pods, "\n"); err != nil || run != (n == 3) || !run != (n == 0) {
			return fmt.Sprintf("%d agents, %v", n, err)
		}
		return ""
	})
}

func agentAway(t *testing.T, e *env) {
	const name = "e2e.tarlift.dev/away:1"
	e.write(t, "away.tar", name, "away")
	e.apply(t, "away", "away.tar", "  deletionPolicy: Delete\n")
	first := e.ready(t, "away")
	e.agents(t, false)
	e.remove(t, "away")
	// Another of that name, which wants the image on one node only.
	e.apply(t, "away", "away.tar", "  deletionPolicy: Delete\n", "  nodeSelector: {matchLabels: {kubernetes.io/hostname: "+e.Nodes[0].Name+"}}\n")
	for _, n := range e.Nodes {
		has(t, n, name, "pinned")
	}
	e.agents(t, true)
	has(t, e.Nodes[1], name, "nothing")
	has(t, e.Nodes[2], name, "nothing")
	eventually(t, func(ctx context.Context) string {
		s := e.on(ctx, e.Nodes[0], "away")
		if s != nil && s.UID != first.UID && s.Ready {
			return ""
		}
		return asJSON(s)
	})
	has(t, e.Nodes[0], name, "pinned")
	e.remove(t, "away")
	has(t, e.Nodes[0], name, "nothing")
}

func dropped(t *testing.T, e *env) {
	const old, current = "e2e.tarlift.dev/dropped:1", "e2e.tarlift.dev/dropped:2"
	e.write(t, "dropped-1.tar", old, "dropped-a")
	e.write(t, "dropped-2.tar", current, "dropped-a", "dropped-b")
	e.apply(t, "dropped", "dropped-1.tar")
	e.ready(t, "dropped")
	e.apply(t, "dropped", "dropped-2.tar")
	e.ready(t, "dropped")
	for _, n := range e.Nodes {
		has(t, n, current, "pinned")
		has(t, n, old, "unpinned")
	}
}

func changed(t *testing.T, e *env) {
	const name = "e2e.tarlift.dev/changed:1"
	e.write(t, "changed.tar", name, "changed-1")
	e.apply(t, "changed", "changed.tar", "  interval: 10s\n")
	e.ready(t, "changed")
	n := e.Nodes[0]
	before := image(t, n, name).Target().Digest
	e.Server.Reset()
	eventually(t, func(context.Context) string {
		if asked := e.Server.Asked(n.IP); asked < 2 {
			return fmt.Sprintf("asked %d times", asked)
		}
		return ""
	})
	e.sentAtMost(t, n, 1024)
	if now := image(t, n, name).Target().Digest; now != before {
		t.Errorf("the image became %s", now)
	}
	e.write(t, "next.tar", name, "changed-1", "changed-2")
	if err := os.Rename(filepath.Join(e.Files, "next.tar"), filepath.Join(e.Files, "changed.tar")); err != nil {
		t.Fatal(err)
	}
	for _, n := range e.Nodes {
		eventually(t, func(context.Context) string {
			if image(t, n, name).Target().Digest == before {
				return n.Name + " has not noticed"
			}
			return ""
		})
		e.sentAtMost(t, n, 8*mib+2*mib)
	}
	eventually(t, func(context.Context) string {
		a := e.archive(t, "changed")
		if meta.IsStatusConditionTrue(a.Status.Conditions, v1alpha1.ConditionReady) && !slices.ContainsFunc(e.Nodes, func(n *cluster.Node) bool {
			s := e.on(t.Context(), n, "changed")
			return s == nil || s.IndexDigest != a.Status.Artifact.IndexDigest
		}) {
			return ""
		}
		return asJSON(a.Status)
	})
	e.remove(t, "changed")
}
