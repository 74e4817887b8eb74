// Package envtest tests the API and the reconcilers on a real API server, without kubelets and containerd: what an
// import does there is played by a fake, in order to fail, hang and be counted.
package envtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlenvtest "sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/test/cluster"
)

// The API server that all tests share; admin may do everything.
var (
	adminConfig *rest.Config
	admin       client.WithWatch
)

const (
	systemNamespace = "tarlift-system"
	// patience bounds every wait. What is waited for takes milliseconds on a quiet machine, but for the first report of an
	// agent for whom nobody has counted the fleet: 71 seconds, and up to 100 where its report is long.
	patience = 2 * time.Minute
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	assets, err := cluster.ToolsDir()
	if err != nil {
		return 1, err
	}
	env := &ctrlenvtest.Environment{
		BinaryAssetsDirectory: assets,
		CRDDirectoryPaths:     []string{"../../config/crd"},
		ErrorIfCRDPathMissing: true,
	}
	adminConfig, err = env.Start()
	if err != nil {
		return 1, fmt.Errorf("start the API server, which `make tools` builds: %w", err)
	}
	defer func() { err = errors.Join(err, env.Stop()) }()

	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		return 1, err
	}
	if admin, err = client.NewWithWatch(adminConfig, client.Options{}); err != nil {
		return 1, err
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: systemNamespace}}
	if err := admin.Create(context.Background(), namespace); err != nil {
		return 1, err
	}
	if err := createFiles("../../config/rbac"); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// createFiles creates the objects of all YAML files in a directory.
func createFiles(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no YAML in %s: %w", dir, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
		for {
			var o unstructured.Unstructured
			if err := docs.Decode(&o); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if err := admin.Create(context.Background(), &o); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return nil
}

// parse reads an object from YAML.
func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	var o unstructured.Unstructured
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	return &o
}

// archiveWith is an ImageArchive of this spec, in YAML.
func archiveWith(t *testing.T, name, spec string) *unstructured.Unstructured {
	t.Helper()
	o := parse(t, "apiVersion: tarlift.dev/v1alpha1\nkind: ImageArchive\nspec:\n"+indent(spec))
	o.SetName(name)
	return o
}

func indent(s string) string {
	var b bytes.Buffer
	for line := range bytes.Lines([]byte(s)) {
		b.WriteString("  ")
		b.Write(bytes.TrimLeft(line, "\t"))
	}
	return b.String()
}

// typed converts an unstructured object.
func typed[T any](t *testing.T, o *unstructured.Unstructured) *T {
	t.Helper()
	out := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// create creates an object for the time of a test.
func create(t *testing.T, o client.Object) {
	t.Helper()
	if err := admin.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := admin.Delete(context.Background(), o); client.IgnoreNotFound(err) != nil {
			t.Error(err)
		}
	})
}
