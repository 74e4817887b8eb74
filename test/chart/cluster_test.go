package chart_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// There is a policy for what runs on the pod network and for nothing else; it lets nothing in but who reads metrics.
func TestNetworkPolicies(t *testing.T) {
	const on, node, controller = `networkPolicy.enabled=true`, `node.hostNetwork=false`, `controller.hostNetwork=false`
	tests := map[string]struct {
		values []string
		want   map[string]string // names, and on which ports one gets in and out
	}{
		"off":             {[]string{node, controller}, map[string]string{}},
		"controller only": {[]string{on, controller}, map[string]string{"tarlift-controller": "[9463] [53 53 443 6443 16443]"}},
		"both": {[]string{on, node, controller}, map[string]string{
			"tarlift-controller": "[9463] [53 53 443 6443 16443]", "tarlift-node": "[9461] [53 53 443 6443 16443 80 443]",
		}},
		"no metrics":        {[]string{on, node, `node.ports.metrics=0`}, map[string]string{"tarlift-node": "[] [53 53 443 6443 16443 80 443]"}},
		"its own way out":   {[]string{on, node, `networkPolicy.apiServer=[{"ports":[{"port":8443}]}]`, `networkPolicy.sources=[]`}, map[string]string{"tarlift-node": "[9461] [53 53 8443]"}},
		"no way out at all": {[]string{on, node, `networkPolicy.apiServer=[]`, `networkPolicy.sources=[]`}, map[string]string{"tarlift-node": "[9461] [53 53]"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects := render(t, tt.values...)
			all := pods(t, objects)
			got := map[string]string{}
			for _, p := range typed[networkingv1.NetworkPolicy](t, objects, "NetworkPolicy") {
				var in, out []string
				for _, rule := range p.Spec.Ingress {
					in = append(in, portsOf(rule.Ports)...)
				}
				for _, rule := range p.Spec.Egress {
					out = append(out, portsOf(rule.Ports)...)
				}
				got[p.Name] = fmt.Sprint(in, " ", out)
				role := p.Labels["app.kubernetes.io/component"]
				selector := labels.SelectorFromSet(p.Spec.PodSelector.MatchLabels)
				if len(p.Spec.PolicyTypes) != 2 || !selector.Matches(labels.Set(all[role].Labels)) {
					t.Errorf("%s: types %v, pods %v", p.Name, p.Spec.PolicyTypes, selector)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("policies (-want +got):\n%s", diff)
			}
		})
	}
}

func portsOf(list []networkingv1.NetworkPolicyPort) []string {
	var found []string
	for _, p := range list {
		found = append(found, p.Port.String())
	}
	return found
}

// Two controllers are preferably not on one node, and a drain takes one at a time.
func TestControllersAreSpread(t *testing.T) {
	objects := render(t)
	spec := one[appsv1.Deployment](t, objects, "Deployment").Spec
	if *spec.Replicas != 2 {
		t.Errorf("%d replicas", *spec.Replicas)
	}
	own := labels.Set(spec.Template.Labels)
	term := spec.Template.Spec.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution[0].PodAffinityTerm
	budget := one[policyv1.PodDisruptionBudget](t, objects, "PodDisruptionBudget")
	for what, selector := range map[string]*metav1.LabelSelector{"anti-affinity": term.LabelSelector, "budget": budget.Spec.Selector} {
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil {
			t.Fatal(err)
		}
		if !s.Matches(own) || s.Matches(labels.Set(pods(t, objects)["node"].Labels)) {
			t.Errorf("%s is about %s, not about controllers only", what, s)
		}
	}
	objects = render(t, `controller.affinity={"nodeAffinity":{}}`, `controller.replicas=1`)
	if a := one[appsv1.Deployment](t, objects, "Deployment").Spec.Template.Spec.Affinity; a.PodAntiAffinity != nil {
		t.Errorf("an affinity that was given becomes %v", a)
	}
	// With one of one, a budget could only stand in the way.
	if n := len(typed[policyv1.PodDisruptionBudget](t, objects, "PodDisruptionBudget")); n != 0 {
		t.Error("a single controller has a disruption budget")
	}
}
