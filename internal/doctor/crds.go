package doctor

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/cli"
)

// checkCRDs reports whether the kinds are served, and checks for fields that this agent knows.
func (c *cluster) checkCRDs(ctx context.Context) bool {
	const check = "crds"
	const remedy = "install the CRDs of the agent's release: helm upgrade with crds.enabled, or kubectl apply --server-side -f config/crd"
	path := "/apis/" + v1alpha1.GroupVersion.String()
	doc, err := c.get(ctx, path)
	var list metav1.APIResourceList
	if err == nil && doc.code == http.StatusOK {
		err = json.Unmarshal(doc.data, &list)
	}
	switch {
	case err != nil:
		c.failed(check, remedy, err)
		return false
	case doc.code != http.StatusOK:
		c.fail(check, remedy, "%s is not served (status %d)", v1alpha1.GroupVersion, doc.code)
		return false
	}
	for _, name := range []string{"imagearchives", "imagearchives/status", "nodeimagestates", "nodeimagestates/status"} {
		if !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == name }) {
			c.fail(check, remedy, "%s has no %s", v1alpha1.GroupVersion, name)
			return false
		}
	}
	if missing := c.missingFields(ctx, path); len(missing) > 0 {
		c.fail(check, remedy, "older than this agent: %s is missing", cli.List(missing))
		return true
	}
	c.ok(check, "%s is served", v1alpha1.GroupVersion)
	return true
}

// schema is the part of an OpenAPI schema that is compared.
type schema struct {
	Properties map[string]*schema `json:"properties"`
}

// missingFields are the fields of the agent's own types that are not served; none if the schema cannot be read.
func (c *cluster) missingFields(ctx context.Context, path string) (missing []string) {
	doc, err := c.get(ctx, "/openapi/v3"+path)
	var api struct {
		Components struct {
			Schemas map[string]*schema `json:"schemas"`
		} `json:"components"`
	}
	if err != nil || json.Unmarshal(doc.data, &api) != nil {
		return nil
	}
	for _, k := range []struct {
		kind, member string
		fields       reflect.Type
	}{
		{"ImageArchive", "spec", reflect.TypeFor[v1alpha1.ImageArchiveSpec]()},
		{"ImageArchive", "status", reflect.TypeFor[v1alpha1.ImageArchiveStatus]()},
		{"NodeImageState", "spec", reflect.TypeFor[v1alpha1.NodeImageStateSpec]()},
		{"NodeImageState", "status", reflect.TypeFor[v1alpha1.NodeImageStateStatus]()},
	} {
		for name, s := range api.Components.Schemas {
			if !strings.HasSuffix(name, "."+k.kind) {
				continue
			}
			served := map[string]*schema{}
			if member := s.Properties[k.member]; member != nil {
				served = member.Properties
			}
			for n := range k.fields.NumField() {
				field, _, _ := strings.Cut(k.fields.Field(n).Tag.Get("json"), ",")
				if _, ok := served[field]; field != "" && !ok {
					missing = append(missing, k.kind+"."+k.member+"."+field)
				}
			}
		}
	}
	return missing
}
