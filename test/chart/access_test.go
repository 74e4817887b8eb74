package chart_test

import (
	"errors"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
)

// TestAccess asks the API server what the chart's accounts may do.
func TestAccess(t *testing.T) {
	c, _ := admin(t)
	type access = authorizationv1.ResourceAttributes
	tests := map[string]struct {
		account string
		access  access
		want    bool
	}{
		"node reads a Secret that a source names": {nodeAccount, access{Verb: "get", Resource: "secrets", Namespace: namespace, Name: "s"}, true},
		"node finds out which Secrets there are":  {nodeAccount, access{Verb: "list", Resource: "secrets", Namespace: namespace}, false},
		"node watches Secrets":                    {nodeAccount, access{Verb: "watch", Resource: "secrets", Namespace: namespace}, false},
		"node reads another namespace's Secret":   {nodeAccount, access{Verb: "get", Resource: "secrets", Namespace: "kube-system", Name: "s"}, false},
		"controller reads a Secret":               {controllerAccount, access{Verb: "get", Resource: "secrets", Namespace: namespace, Name: "s"}, false},
		"node orders an import":                   {nodeAccount, access{Verb: "create", Group: "tarlift.dev", Resource: "imagearchives"}, false},
		"controller orders an import":             {controllerAccount, access{Verb: "create", Group: "tarlift.dev", Resource: "imagearchives"}, false},
		"node follows ImageArchives":              {nodeAccount, access{Verb: "watch", Group: "tarlift.dev", Resource: "imagearchives"}, true},
		"node writes a roll-up":                   {nodeAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "imagearchives", Subresource: "status"}, false},
		"controller writes a roll-up":             {controllerAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "imagearchives", Subresource: "status"}, true},
		"controller speaks for a node":            {controllerAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "nodeimagestates", Subresource: "status"}, false},
		"node reports":                            {nodeAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "nodeimagestates", Subresource: "status"}, true},
		"node writes a spec":                      {nodeAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "nodeimagestates"}, false},
		"node replaces a report":                  {nodeAccount, access{Verb: "update", Group: "tarlift.dev", Resource: "nodeimagestates", Subresource: "status"}, false},
		"node deletes a report":                   {nodeAccount, access{Verb: "delete", Group: "tarlift.dev", Resource: "nodeimagestates"}, false},
		"controller admits nodes":                 {controllerAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "nodeimagestates"}, true},
		"controller deletes what no node has":     {controllerAccount, access{Verb: "delete", Group: "tarlift.dev", Resource: "nodeimagestates"}, true},
		"controller makes up nodes":               {controllerAccount, access{Verb: "create", Group: "tarlift.dev", Resource: "nodeimagestates"}, false},
		"controller replaces nodes' reports":      {controllerAccount, access{Verb: "update", Group: "tarlift.dev", Resource: "nodeimagestates", Subresource: "status"}, false},
		"controller deletes all reports":          {controllerAccount, access{Verb: "deletecollection", Group: "tarlift.dev", Resource: "nodeimagestates"}, false},
		"node relabels nodes":                     {nodeAccount, access{Verb: "patch", Resource: "nodes", Name: "node-a"}, false},
		"controller leads":                        {controllerAccount, access{Verb: "create", Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace}, true},
		"controller takes another lease":          {controllerAccount, access{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace, Name: "other"}, false},
	}
	ask := func(t *testing.T, account string, a access) bool {
		t.Helper()
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:" + namespace + ":" + account, ResourceAttributes: &a,
		}}
		create(t, c, review)
		return review.Status.Allowed
	}
	// What is allowed first: afterwards the server has seen every role.
	for _, want := range []bool{true, false} {
		for name, tt := range tests {
			if tt.want != want {
				continue
			}
			t.Run(name, func(t *testing.T) {
				if !want {
					if ask(t, tt.account, tt.access) {
						t.Error("allowed")
					}
					return
				}
				eventually(t, "the rights of the role", func() error {
					if !ask(t, tt.account, tt.access) {
						return errors.New("refused")
					}
					return nil
				})
			})
		}
	}
}
