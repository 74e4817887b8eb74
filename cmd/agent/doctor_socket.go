package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// sockets are where containerd's is elsewhere.
var sockets = []string{
	"/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/k0s/containerd.sock",
	"/var/snap/microk8s/common/run/containerd.sock", "/run/docker/containerd/containerd.sock",
}

// checkSocket says whether somebody listens at the socket who lets us in.
func (d *doctor) checkSocket(ctx context.Context, path string) bool {
	const check = "socket"
	_, err := ask(ctx, d, func(ctx context.Context) (struct{}, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			_ = conn.Close() // it has answered
		}
		return struct{}{}, err //nolint:wrapcheck // its kind is looked at
	})
	info, statErr := os.Stat(path)
	remedy := "is containerd running ('systemctl status containerd')?"
	switch {
	case err == nil:
		d.ok(check, "%s answers", path)
		return true
	case errors.Is(statErr, fs.ErrNotExist):
		for _, other := range sockets {
			if s, err := os.Stat(other); err == nil && s.Mode()&fs.ModeSocket != 0 {
				remedy = "there is one at " + other + ": --address " + other
				break
			}
		}
		d.add(check, verdictFail, remedy, "%s does not exist", path)
	case errors.Is(statErr, fs.ErrPermission) || errors.Is(err, syscall.EACCES):
		d.add(check, verdictFail, "run this as root, to whom the socket belongs", "%s: permission denied (user id %d)", path, os.Geteuid())
	case statErr == nil && info.Mode()&fs.ModeSocket == 0:
		d.add(check, verdictFail, "give containerd's socket by --address", "%s is no socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		d.add(check, verdictFail, remedy, "%s: nobody listens there", path)
	default:
		d.failed(check, remedy, err)
	}
	return false
}
