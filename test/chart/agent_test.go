package chart_test

import (
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// A flag that the agent does not know would be found out by a crash loop. With
// --help, it parses all others and runs nothing.
func TestAgentKnowsItsFlags(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", agent, root+"/cmd/agent")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	run := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), agent, append(args, "--help")...).CombinedOutput()
		return string(out), err
	}
	if out, err := run("node", "--no-such-flag"); err == nil {
		t.Fatalf("--help hides unknown flags:\n%s", out)
	}
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			objects := render(t, values...)
			all := pods(t, objects)
			all["doctor"] = corev1.PodTemplateSpec{Spec: one[corev1.Pod](t, objects, "Pod").Spec}
			for role, pod := range all {
				if out, err := run(expand(t, pod.Spec.Containers[0])...); err != nil {
					t.Errorf("%s: %v\n%s", role, err, out)
				}
			}
		})
	}
}

// expand returns a container's arguments as the kubelet hands them over.
func expand(t *testing.T, c corev1.Container) []string {
	t.Helper()
	var env []string
	for name, value := range environment(c) {
		env = append(env, "$("+name+")", value)
	}
	var args []string
	for _, a := range c.Args {
		a = strings.NewReplacer(env...).Replace(a)
		if strings.Contains(a, "$(") {
			t.Errorf("%s names a variable that is not there", a)
		}
		args = append(args, a)
	}
	return args
}

// environment returns a container's variables as the kubelet hands them over.
func environment(c corev1.Container) map[string]string {
	env := map[string]string{}
	for _, e := range c.Env {
		value := e.Value
		for name, known := range env {
			value = strings.ReplaceAll(value, "$("+name+")", known)
		}
		switch from := e.ValueFrom; {
		case from != nil && from.FieldRef != nil:
			value = map[string]string{
				"status.podIP": "fd00::1", "spec.nodeName": "node-a", "metadata.namespace": namespace,
			}[from.FieldRef.FieldPath]
		case from != nil && from.ResourceFieldRef.Resource == "limits.memory":
			limit, ok := c.Resources.Limits[corev1.ResourceMemory]
			if !ok {
				limit = resource.MustParse("16Gi") // the node's allocatable memory
			}
			divisor := from.ResourceFieldRef.Divisor.Value()
			value = strconv.FormatInt((limit.Value()+divisor-1)/divisor, 10)
		}
		env[e.Name] = value
	}
	return env
}

// Go collects its garbage sooner when the container comes near its limit. What Go does not count has room beside that.
func TestGoMemoryLimit(t *testing.T) {
	for limit, values := range map[string][]string{
		"256Mi": nil,
		"300M":  {`node.resources.limits.memory="300M"`, `controller.resources.limits.memory="300M"`},
		"1Gi":   {`node.resources.limits.memory="1Gi"`, `controller.resources.limits.memory="1Gi"`},
		"16Gi":  {`node.resources={"limits":null}`, `controller.resources={"limits":null}`},
	} {
		objects := render(t, values...)
		all := pods(t, objects)
		all["doctor"] = corev1.PodTemplateSpec{Spec: one[corev1.Pod](t, objects, "Pod").Spec}
		for role, pod := range all {
			text := environment(pod.Spec.Containers[0])["GOMEMLIMIT"]
			got, err := strconv.ParseInt(text, 10, 64)
			if whole := resource.MustParse(limit); err != nil || got < whole.Value()*9/10 || got > whole.Value()*97/100 {
				t.Errorf("%s has GOMEMLIMIT %q, want 90 to 97 %% of %s", role, text, limit)
			}
		}
	}
}

// The addresses are written as IPv6 needs them, whatever the pod's is.
func TestListenAddresses(t *testing.T) {
	for role, pod := range pods(t, render(t)) {
		c := pod.Spec.Containers[0]
		var listeners int
		for _, arg := range expand(t, c) {
			flag, address, _ := strings.Cut(arg, "=")
			if !strings.HasSuffix(flag, "-bind-address") {
				continue
			}
			listeners++
			if host, _, err := net.SplitHostPort(address); err != nil || host != "fd00::1" {
				t.Errorf("%s listens on %q (%v), want the pod's address", role, address, err)
			}
			address = strings.ReplaceAll(address, "fd00::1", "127.0.0.1")
			if host, _, err := net.SplitHostPort(address); err != nil || host != "127.0.0.1" {
				t.Errorf("%s cannot listen on %q: %v", role, address, err)
			}
		}
		if listeners != 2 {
			t.Errorf("%s has %d listeners, want metrics and health", role, listeners)
		}
	}
}

// The doctor's pod differs from an agent's in what it runs only, and has no right of its own.
func TestDoctorIsLikeAnAgent(t *testing.T) {
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			objects := render(t, values...)
			agent, doctor := pods(t, objects)["node"].Spec, one[corev1.Pod](t, objects, "Pod")
			if doctor.Annotations["helm.sh/hook"] != "test" || doctor.Spec.RestartPolicy != corev1.RestartPolicyNever {
				t.Errorf("annotations %v, restarts %s", doctor.Annotations, doctor.Spec.RestartPolicy)
			}
			doctor.Spec.RestartPolicy = ""
			a, d := &agent.Containers[0], &doctor.Spec.Containers[0]
			agent.Volumes = slices.DeleteFunc(agent.Volumes, func(v corev1.Volume) bool { return v.Name == "archives" })
			a.VolumeMounts = slices.DeleteFunc(a.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "archives" })
			a.Args, d.Args, a.Ports, a.LivenessProbe, a.ReadinessProbe = nil, nil, nil, nil, nil
			if diff := cmp.Diff(agent, doctor.Spec); diff != "" {
				t.Errorf("pods (-agent +doctor):\n%s", diff)
			}
		})
	}
}
