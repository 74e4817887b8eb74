package chart_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestLint(t *testing.T) {
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			args := []string{"lint", "--strict", chart}
			for _, v := range values {
				args = append(args, "--set-json", v)
			}
			if out, err := helm(t, args...); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestSchema has one row for each mistake that would otherwise be found out on
// the nodes.
func TestSchema(t *testing.T) {
	tests := map[string]struct{ value, field string }{
		"unknown key":                    {`imagePullPolicy="Never"`, "imagePullPolicy"},
		"unknown nested key":             {`node.toleration=[]`, "toleration"},
		"pull policy":                    {`image.pullPolicy="Allways"`, "pullPolicy"},
		"digest without algorithm":       {`image.digest="abc"`, "digest"},
		"socket as a URL":                {`containerd.address="unix:///run/containerd/containerd.sock"`, "address"},
		"no such preset":                 {`containerd.preset="docker"`, "preset"},
		"the mount would be /":           {`containerd.address="/containerd.sock"`, "address"},
		"relative archive directory":     {`archives.directory="archives"`, "directory"},
		"API server as a URL":            {`apiServer.host="https://10.0.0.1"`, "host"},
		"port":                           {`node.ports.health=0`, "health"},
		"a peer that is none":            {`networkPolicy.metricsFrom=[{}]`, "metricsFrom"},
		"policies that nobody obeys":     {`networkPolicy.enabled=true`, "node.hostNetwork"},
		"a port as a rule":               {`networkPolicy.sources=[443]`, "sources"},
		"an interval of no unit":         {`podMonitor.interval="30"`, "interval"},
		"a label that is no text":        {`prometheusRule.labels={"a":1}`, "labels"},
		"replicas as text":               {`controller.replicas="2"`, "replicas"},
		"boolean as text":                {`crds.keep="false"`, "keep"},
		"a path out of the directory":    {`archives.directory="/var/lib/../../etc"`, "directory"},
		"a socket reached by ..":         {`containerd.address="/run/../containerd.sock"`, "address"},
		"two volumes in one place":       {`archives.directory="/run/containerd"`, "archives.directory"},
		"in one place of a preset":       {`{"containerd":{"preset":"k0s"},"archives":{"directory":"/run/k0s"}}`, "archives.directory"},
		"two volumes in one place, by .": {`archives.directory="/run/./containerd"`, "archives.directory"},
		"node's ports are one":           {`node.ports={"metrics":9462,"health":9462}`, "node.ports"},
		"controller's ports are one":     {`controller.ports.health=9463`, "controller.ports"},
		"a reserve of everything":        {`node.diskReserve="100%"`, "diskReserve"},
		"a reserve without a unit":       {`node.diskReserve="much"`, "diskReserve"},
		"a reserve without a percent":    {`node.diskReserve="15"`, "diskReserve"},
		"a reserve that is a number":     {`node.diskReserve=15`, "diskReserve"},
		"an interval without a unit":     {`node.checkInterval="10"`, "checkInterval"},
		"an interval that is nothing":    {`node.checkInterval=""`, "checkInterval"},
		"an interval of no time":         {`node.checkInterval="0s"`, "checkInterval"},
		"a root that is relative":        {`containerd.rootDirectory="lib/containerd"`, "rootDirectory"},
		"an address without a prefix":    {`node.allowSourceAddresses=["127.0.0.1"]`, "allowSourceAddresses"},
		"a prefix too long":              {`node.allowSourceAddresses=["127.0.0.1/33"]`, "allowSourceAddresses"},
		"a name as a prefix":             {`node.allowSourceAddresses=["localhost/32"]`, "allowSourceAddresses"},
		"one prefix without a list":      {`node.allowSourceAddresses="127.0.0.1/32"`, "allowSourceAddresses"},
		"proxy as text":                  {`node.sourceProxyFromEnvironment="false"`, "sourceProxyFromEnvironment"},
		"a namespace that is no name":    {`secrets.namespace="A_b"`, "namespace"},
		"toleration with unknown effect": {`node.tolerations=[{"operator":"Exists","effect":"No"}]`, "effect"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := helm(t, "template", release, chart, "--set-json", tt.value)
			if err == nil || !strings.Contains(err.Error(), tt.field) {
				t.Errorf("values with %s: error %v, want one that names %s", tt.value, err, tt.field)
			}
		})
	}
}

// Every value is in the schema with its default, and every property of the schema is a value: none is forgotten or dead.
func TestSchemaIsThatOfTheValues(t *testing.T) {
	read := func(name string) map[string]any {
		data, err := os.ReadFile(filepath.Join(chart, name))
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := yaml.Unmarshal(data, &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	schema := read("values.schema.json")
	defs, _ := schema["$defs"].(map[string]any)
	var compare func(path string, schema, values map[string]any)
	compare = func(path string, schema, values map[string]any) {
		if ref, ok := schema["$ref"].(string); ok {
			schema, _ = defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		}
		properties, _ := schema["properties"].(map[string]any)
		if properties == nil {
			return // Kubernetes' own
		}
		if schema["additionalProperties"] != false {
			t.Errorf("%s: what is misspelt is accepted", path)
		}
		for name, s := range properties {
			value, ok := values[name]
			// What Helm adds, and what Kubernetes names, has no default.
			if !ok && path+name != "global" && !strings.HasPrefix(path, "node.seLinuxOptions.") && !strings.Contains(path, "resources.") {
				t.Errorf("%s%s is no value", path, name)
			}
			inner, _ := value.(map[string]any)
			compare(path+name+".", s.(map[string]any), inner)
		}
		for name := range values {
			if _, ok := properties[name]; !ok {
				t.Errorf("%s%s is not in the schema", path, name)
			}
		}
	}
	compare("", schema, read("values.yaml"))
}
