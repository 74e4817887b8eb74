package fleet

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// largeFleet is what a controller knows of this many nodes with this many archives each, as its cache keeps it.
func largeFleet(nodes, archives int, k *interner) *snapshot {
	f := &snapshot{states: map[string]*v1alpha1.NodeImageState{}}
	digest := "sha256:" + strings.Repeat("0", 64)
	for i := range nodes {
		name := fmt.Sprintf("node-%d.plant.example", i)
		node := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(fmt.Sprintf("%036d", i)), Labels: map[string]string{
			"kubernetes.io/hostname": strings.Clone(name),
		}}}
		for j := range 15 {
			node.Labels[fmt.Sprintf("label-%d.kubernetes.io/some-name", j)] = fmt.Sprintf("some-value-%d", j)
		}
		state := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{
			Name: name, ResourceVersion: fmt.Sprint(i), UID: types.UID(fmt.Sprintf("%036d", 100_000+i)),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}},
		}}
		for j := range archives {
			e := v1alpha1.ArchiveState{
				Name: fmt.Sprintf("archive-%d", j), UID: types.UID(fmt.Sprintf("uid-archive-%d", j)), ObservedGeneration: 1,
				Digest: strings.Clone(digest), IndexDigest: strings.Clone(digest), Size: 1 << 30, ImageCount: 4,
				Bytes: &v1alpha1.ArchiveBytes{Total: 1 << 30}, StartTime: condition.Timestamp(epoch), CompletionTime: condition.Timestamp(epoch), Attempts: 1,
			}
			e.Ready, e.Bytes, e.StartTime = true, nil, nil
			if i%10 == 0 {
				e.Ready = false
				saysRetrying(&e)
			}
			state.Status.Archives = append(state.Status.Archives, e)
		}
		k.trimState(state)
		k.trimNode(&node)
		f.nodes, f.states[name] = append(f.nodes, node), state
	}
	return f
}

// What one look at an archive costs, where each of 5,000 nodes has 20 of them, and what all of that takes in memory.
func BenchmarkLargeFleet(b *testing.B) {
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	before := heap()
	f := largeFleet(5000, 20, newInterner())
	size := heap() - before
	a := newArchive("archive-19")
	b.Run("aggregate", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			aggregated(a, f.nodes, f.states, 0)
		}
		b.ReportMetric(size, "MiB-cached")
	})
	a.Spec.Rollout = &v1alpha1.Rollout{MaxConcurrent: ptr.To(intstr.FromString("10%")), MaxFailed: ptr.To[int32](1000)}
	ro := &rollout{}
	b.Run("rollout", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			nodes, _ := f.selected(a)
			f.unselected(a.Name, nodes)
			ro.observe(a, nodes, epoch, epoch)
			ro.decide(a, nodes, epoch)
		}
	})
	runtime.KeepAlive(f)
}
