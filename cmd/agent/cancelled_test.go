package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A process that is told to end does not log as an error what it has cut short by that.
func TestLogLeavesOutWhatWasCancelled(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(&out).WithName("client").WithValues("node", "a")
	post := &url.Error{Op: "Post", URL: "https://10.0.0.1/apis/events.k8s.io/v1/namespaces/default/events", Err: context.Canceled}
	log.Error(fmt.Errorf("limited: %w", post), "Unable to write event (may retry after sleeping)")
	// Another candidate was faster, as it is when two start together.
	lease := schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}
	log.Error(apierrors.NewAlreadyExists(lease, "controller.tarlift.dev"), "Error initially creating lease lock")
	log.Error(apierrors.NewConflict(lease, "controller.tarlift.dev", errors.New("modified")), "Failed to update lock")
	if out.Len() > 0 {
		t.Errorf("logged %s", out.String())
	}
	log.Error(errors.New("refused"), "Unable to write event")
	log.Error(context.DeadlineExceeded, "Too late")
	log.Info("Importing", "archive", "b")
	if n := strings.Count(out.String(), "\n"); n != 3 {
		t.Errorf("%d lines, want 3:\n%s", n, out.String())
	}
}
