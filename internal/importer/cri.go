package importer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubeletNamespace is the only one that CRI, and so the kubelet, looks into.
const kubeletNamespace = "k8s.io"

const (
	// criStartWait is how long a CRI may take to be ready after containerd answers: it reads all containers first.
	criStartWait = 3 * time.Second
	// criNameWait is how long a name may take to be known to CRI, after the one before. CRI reads containerd's events one
	// after the other, each within milliseconds; an image that it could not read it tries again after a second.
	criNameWait = 3 * time.Second
)

// errNoCRI is a containerd whose CRI plugin is disabled, or could not start.
var errNoCRI = errors.New("containerd does not serve CRI")

// cri is how the kubelet sees this containerd. Its members are nil where there is no connection.
type cri struct {
	images  runtimeapi.ImageServiceClient
	runtime runtimeapi.RuntimeServiceClient
}

// newCRI uses the connection of containerd's client: CRI is on the same socket.
func newCRI(c *client.Client) cri {
	conn, ok := c.Conn().(*grpc.ClientConn)
	if !ok || conn == nil { // services that are in this process
		return cri{}
	}
	return cri{runtimeapi.NewImageServiceClient(conn), runtimeapi.NewRuntimeServiceClient(conn)}
}

// criError says that CRI did not answer, and whether it is there at all.
func criError(doing string, err error) error {
	if errdefs.IsNotImplemented(errgrpc.ToNative(err)) {
		return errNoCRI
	}
	return runtimeError(doing, err)
}

// status asks for the image that a name stands for, as the kubelet does: its id, empty if there is none.
func (c cri) status(ctx context.Context, name string) (id string, err error) {
	if c.images == nil {
		return "", errNoCRI
	}
	resp, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		return "", criError("ask CRI for "+name, err)
	}
	return resp.GetImage().GetId(), nil
}

// snapshotDirectory is where the snapshotter that CRI uses by default has its root: CRI names its place only.
func (c cri) snapshotDirectory(ctx context.Context) (string, error) {
	if c.images == nil {
		return "", errNoCRI
	}
	for deadline, pause := time.Now().Add(criStartWait), 5*time.Millisecond; ; pause *= 2 {
		resp, err := c.images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
		if err == nil {
			if all := resp.GetImageFilesystems(); len(all) > 0 { // the default snapshotter's comes first
				return all[0].GetFsId().GetMountpoint(), nil
			}
			return "", nil
		}
		if err = criError("ask CRI for its file systems", err); !errors.Is(err, ErrRuntimeUnavailable) || time.Now().After(deadline) {
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err() //nolint:wrapcheck // the caller's own
		case <-time.After(pause):
		}
	}
}

// criSnapshotter is the snapshotter that CRI uses unless a runtime class says otherwise; empty if it does not say.
func (i *Importer) criSnapshotter(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*criStartWait)
	defer cancel()
	dir, err := i.cri.snapshotDirectory(ctx)
	if err != nil || dir == "" {
		return "", err
	}
	resp, err := i.client.IntrospectionService().Plugins(ctx, fmt.Sprintf("type==%s", plugins.SnapshotPlugin))
	if err != nil {
		return "", runtimeError("ask for containerd's snapshotters", err)
	}
	for _, p := range resp.GetPlugins() {
		if p.GetExports()["root"] == dir {
			return p.GetID(), nil
		}
	}
	// A snapshotter that does not say where its root is gets a name of containerd's by CRI, made of its own.
	name, _ := strings.CutPrefix(filepath.Base(dir), plugins.SnapshotPlugin.String()+".")
	for _, p := range resp.GetPlugins() {
		if p.GetID() == name {
			return name, nil
		}
	}
	return "", nil
}

// notVisible asks CRI for published names, and returns those behind which it does not find their images, sorted; or why
// it could not be asked. What other namespaces hold is not meant for the kubelet.
//
// CRI learns of a name by an event, some milliseconds after it was written.
func (i *Importer) notVisible(ctx context.Context, ids map[string]digest.Digest) (names []string, unknown string) {
	if i.namespace != kubeletNamespace {
		return nil, ""
	}
	for name := range ids {
		names = append(names, name)
	}
	slices.Sort(names)
	deadline := time.Now().Add(criNameWait)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		left, err := i.stillNotVisible(ctx, names, ids)
		switch {
		case errors.Is(err, errNoCRI):
			return nil, err.Error()
		case err == nil && len(left) == 0:
			return nil, ""
		case len(left) < len(names):
			deadline = time.Now().Add(criNameWait)
		case ctx.Err() != nil:
			return nil, "interrupted before CRI was asked"
		case time.Now().After(deadline) && err != nil:
			return nil, err.Error()
		case time.Now().After(deadline):
			return left, ""
		}
		names = left
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// stillNotVisible asks once for each name. After an error the rest is not asked for.
func (i *Importer) stillNotVisible(ctx context.Context, names []string, ids map[string]digest.Digest) (left []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, criNameWait)
	defer cancel()
	for k, name := range names {
		id, err := i.cri.status(ctx, name)
		if err != nil {
			return append(left, names[k:]...), err
		}
		if id != ids[name].String() {
			left = append(left, name)
		}
	}
	return left, nil
}
