package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/plugins"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// Status is what CRI says of itself, for `agent doctor`.
type Status struct {
	Serving     bool
	Problem     string // why it does not serve
	Version     string
	Snapshotter string // empty where it does not say
	// NotReady are the conditions that are not met, each with its reason. The network's is apart: imports do not need it.
	NotReady        []string
	NetworkNotReady string
}

// Status asks CRI for its version, its conditions and its snapshotter. A CRI that is not served is no error.
func (c Client) Status(ctx context.Context) (Status, error) {
	if c.Runtime == nil {
		return Status{Problem: ErrNotServed.Error()}, nil
	}
	v, err := c.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		if err = callError("ask CRI's version", err); !errors.Is(err, ErrNotServed) {
			return Status{}, err
		}
		problem, err := c.whyNotServed(ctx)
		return Status{Problem: problem}, err
	}
	s := Status{Serving: true, Version: v.GetRuntimeApiVersion()}
	resp, err := c.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return s, callError("ask CRI's status", err)
	}
	for _, cond := range resp.GetStatus().GetConditions() {
		why := strings.TrimSuffix(cond.GetType()+": "+cond.GetReason(), ": ")
		switch {
		case cond.GetStatus():
		case cond.GetType() == runtimeapi.NetworkReady:
			s.NetworkNotReady = why
		case cond.GetType() == runtimeapi.RuntimeReady:
			s.NotReady = append(s.NotReady, why)
		}
	}
	s.Snapshotter, err = c.Snapshotter(ctx)
	return s, err
}

// whyNotServed looks for a plugin of CRI's that could not start.
func (c Client) whyNotServed(ctx context.Context) (string, error) {
	resp, err := c.Plugins.Plugins(ctx, fmt.Sprintf("type==%s", plugins.CRIServicePlugin), fmt.Sprintf("type==%s,id==cri", plugins.GRPCPlugin))
	if err != nil {
		return "", daemon.Error("ask for CRI's plugins", err)
	}
	var skipped string
	for _, p := range resp.GetPlugins() {
		message := p.GetInitErr().GetMessage()
		switch {
		case message == "":
		case strings.Contains(message, "skip plugin"): // because of another one
			skipped = message
		default:
			return fmt.Sprintf("plugin %s.%s did not start: %s", p.GetType(), p.GetID(), message), nil
		}
	}
	if skipped != "" {
		return "its plugin did not start: " + skipped, nil
	}
	return "its plugin is disabled", nil
}
