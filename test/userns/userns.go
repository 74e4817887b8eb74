// Package userns is for tests that mount something: whoever runs them need not be root.
package userns

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

const insideEnv = "TARLIFT_TEST_USERNS"

// Inside runs the calling test once more, as root of a user namespace and with mounts of its own, and reports what came
// of it. It returns true in that second run, whose mounts go with it, and false in the first one, which has nothing left
// to do. The test must not be a subtest.
//
//	if !userns.Inside(t) {
//		return
//	}
//
// The kernel must allow user namespaces: where it keeps them from unprivileged users, the test fails.
func Inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run", "^"+regexp.QuoteMeta(t.Name())+"$")
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as root of a user namespace: %v\n%s", err, out)
	}
	return false
}
