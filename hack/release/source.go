package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	errVersion = errors.New("a release's version is MAJOR.MINOR.PATCH or MAJOR.MINOR.PATCH-PRERELEASE, as in make release VERSION=1.2.3")
	errDirty   = errors.New("the tree is not as it was committed; DIRTY=1 releases it all the same")
)

// semver is https://semver.org without build metadata: the version is also the image's tag, which can have no "+".
var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)` +
	`(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?$`)

// checkVersion accepts what Helm calls a version. Only the tag in git has a "v", for Go's sake.
func checkVersion(version string) error {
	if semver.MatchString(version) {
		return nil
	}
	if bare, ok := strings.CutPrefix(version, "v"); ok && semver.MatchString(bare) {
		return fmt.Errorf("version %q: only the tag has a v: %w", version, errVersion)
	}
	return fmt.Errorf("version %q: %w", version, errVersion)
}

// checkClean fails if there is anything that the last commit does not have. A file that git does not know counts, since
// Go and Helm would take it.
func checkClean(ctx context.Context) error {
	changes, err := git(ctx, "status", "--porcelain")
	if err != nil {
		return err
	}
	if changes != "" {
		return fmt.Errorf("%w:\n%s", errDirty, changes)
	}
	return nil
}

// sourceTime is the time of the last commit, unless the environment knows another: a source archive has no commits.
// https://reproducible-builds.org/specs/source-date-epoch/
func sourceTime(ctx context.Context) (time.Time, error) {
	const variable = "SOURCE_DATE_EPOCH"
	seconds, ok := os.LookupEnv(variable)
	if !ok {
		var err error
		if seconds, err = git(ctx, "log", "-1", "--format=%ct"); err != nil {
			return time.Time{}, fmt.Errorf("time of the source, since %s is not set: %w", variable, err)
		}
	}
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("time of the source: %w", err)
	}
	return time.Unix(unix, 0).UTC(), nil
}

func git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimRight(string(out), "\n"), nil
}
