#!/usr/bin/env bash
# Fails, naming the files, if the tree is not as `make generate`, gofmt and
# `go mod tidy` leave it, or if what they did is not committed. The tools'
# modules need no check: each is built read-only from its go.mod and go.sum.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=0
# report TITLE LINES fails with LINES, unless there are none.
report() {
	[[ -n $2 ]] || return 0
	printf 'verify: %s\n%s\n' "$1" "$2" >&2
	failed=1
}

mapfile -t sources < <(git ls-files --cached --others --exclude-standard '*.go')
report 'not formatted (run gofmt -w):' "$(gofmt -l "${sources[@]}")"
tidy=$(go mod tidy -diff) || report 'not tidy (run go mod tidy):' "${tidy:-go.mod}"
report 'changed:' "$(git diff HEAD --name-only)"
report 'not added to git:' "$(git ls-files --others --exclude-standard -- api charts config)"
exit $failed
