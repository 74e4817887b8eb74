// Package cri sees a containerd as the kubelet does: through the CRI plugin on the same socket.
//
//	c := cri.New(client)
//	names, unknown := c.NotVisible(ctx, map[string]digest.Digest{"docker.io/library/app:1": config})
package cri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// Namespace is the only one that CRI, and so the kubelet, uses.
const Namespace = "k8s.io"

const (
	// startWait is how long CRI may take to be ready after containerd answers: it reads all containers first.
	startWait  = 3 * time.Second
	startPause = 20 * time.Millisecond
	// nameWait is how long a name may take to be known to CRI, after the one before. CRI reads containerd's events one
	// after the other, each within milliseconds; an image that it could not read it tries again after a second.
	nameWait = 3 * time.Second
)

// ErrNotServed is a containerd whose CRI plugin is disabled, or could not start.
var ErrNotServed = errors.New("containerd does not serve CRI")

// Client asks the CRI of one containerd. The zero Client has no connection: its calls fail with ErrNotServed.
type Client struct {
	Images  runtimeapi.ImageServiceClient
	Runtime runtimeapi.RuntimeServiceClient
	Plugins introspection.Service // of the same containerd
}

// New uses the connection of containerd's client. The Client is zero when that client's services are in this process.
func New(c *client.Client) Client {
	conn, ok := c.Conn().(*grpc.ClientConn)
	if !ok || conn == nil {
		return Client{}
	}
	return Client{runtimeapi.NewImageServiceClient(conn), runtimeapi.NewRuntimeServiceClient(conn), c.IntrospectionService()}
}

// callError is daemon.Error, or ErrNotServed when there is no CRI to call.
func callError(doing string, err error) error {
	if errdefs.IsNotImplemented(errgrpc.ToNative(err)) {
		return ErrNotServed
	}
	return daemon.Error(doing, err)
}

// Snapshotter is the name of the snapshotter that CRI uses unless a runtime class says otherwise; empty if CRI does not say.
// It waits a few seconds for a CRI that is starting.
func (c Client) Snapshotter(ctx context.Context) (string, error) {
	if c.Images == nil {
		return "", ErrNotServed
	}
	ctx, cancel := context.WithTimeout(ctx, 2*startWait)
	defer cancel()
	var root string
	for start := time.Now(); ; time.Sleep(startPause) {
		info, err := c.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		if err == nil {
			if all := info.GetImageFilesystems(); len(all) > 0 { // the default snapshotter's comes first
				root = all[0].GetFsId().GetMountpoint()
			}
			break
		}
		err = callError("ask CRI for its file systems", err)
		if !errors.Is(err, daemon.ErrUnavailable) || time.Since(start) > startWait || ctx.Err() != nil {
			return "", err
		}
	}
	if root == "" {
		return "", nil
	}
	resp, err := c.Plugins.Plugins(ctx, fmt.Sprintf("type==%s", plugins.SnapshotPlugin))
	if err != nil {
		return "", daemon.Error("ask for containerd's snapshotters", err)
	}
	// For a snapshotter that does not report its root CRI makes up a path that ends with its name.
	last, named := strings.TrimPrefix(filepath.Base(root), plugins.SnapshotPlugin.String()+"."), ""
	for _, p := range resp.GetPlugins() {
		switch {
		case p.GetExports()["root"] == root:
			return p.GetID(), nil
		case p.GetID() == last:
			named = last
		}
	}
	return named, nil
}

// NotVisible asks CRI for names in Namespace, and returns those behind which it does not find the image with that config
// digest, sorted; or why CRI could not be asked. CRI learns of a name by an event, some milliseconds after it was written,
// so each is waited for a few seconds.
func (c Client) NotVisible(ctx context.Context, configs map[string]digest.Digest) (names []string, unknown string) {
	names = slices.Sorted(maps.Keys(configs))
	deadline := time.Now().Add(nameWait)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		left, err := c.stillNotVisible(ctx, names, configs)
		switch {
		case errors.Is(err, ErrNotServed):
			return nil, err.Error()
		case err == nil && len(left) == 0:
			return nil, ""
		case len(left) < len(names):
			deadline = time.Now().Add(nameWait)
		case ctx.Err() != nil:
			return nil, "interrupted before CRI was asked"
		case time.Now().After(deadline) && err != nil:
			return nil, err.Error()
		case time.Now().After(deadline):
			return left, ""
		}
		names = left
		time.Sleep(pause)
	}
}

// stillNotVisible asks once for each name. After an error the rest is not asked for.
func (c Client) stillNotVisible(ctx context.Context, names []string, configs map[string]digest.Digest) (left []string, err error) {
	if c.Images == nil {
		return names, ErrNotServed
	}
	ctx, cancel := context.WithTimeout(ctx, nameWait)
	defer cancel()
	for k, name := range names {
		resp, err := c.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil {
			return append(left, names[k:]...), callError("ask CRI for "+name, err)
		}
		if resp.GetImage().GetId() != configs[name].String() { // an image's id is its config's digest
			left = append(left, name)
		}
	}
	return left, nil
}

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

// whyNotServed asks for a plugin of CRI's that could not start.
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
