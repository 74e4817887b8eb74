package doctor

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// sockets are where distributions have containerd's socket.
var sockets = []string{
	"/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/k0s/containerd.sock",
	"/var/snap/microk8s/common/run/containerd.sock", "/run/docker/containerd/containerd.sock",
}

// checkSocket reports whether a process accepts connections at the socket.
func (e *examination) checkSocket(ctx context.Context, path string) bool {
	const check = "socket"
	_, err := ask(ctx, e, func(ctx context.Context) (struct{}, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			_ = conn.Close() // the connection is the answer
		}
		return struct{}{}, err //nolint:wrapcheck // only its kind counts
	})
	info, statErr := os.Stat(path)
	remedy := "is containerd running ('systemctl status containerd')?"
	switch {
	case err == nil:
		e.ok(check, "%s answers", path)
		return true
	case errors.Is(statErr, fs.ErrNotExist):
		for _, other := range sockets {
			if s, err := os.Stat(other); err == nil && s.Mode()&fs.ModeSocket != 0 {
				remedy = "there is a socket at " + other + ": use --address " + other
				break
			}
		}
		e.fail(check, remedy, "%s does not exist", path)
	case errors.Is(statErr, fs.ErrPermission) || errors.Is(err, syscall.EACCES):
		e.fail(check, "run this as root, who owns the socket", "%s: permission denied (user id %d)", path, os.Geteuid())
	case statErr == nil && info.Mode()&fs.ModeSocket == 0:
		e.fail(check, "set --address to containerd's socket", "%s is no socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		e.fail(check, remedy, "%s: no process listens there", path)
	default:
		e.failed(check, remedy, err)
	}
	return false
}
