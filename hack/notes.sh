#!/usr/bin/env bash
# usage: notes.sh VERSION
#
# Prints the section of a version in CHANGELOG.md, which are the notes of its
# release. Fails if there is none, or nothing in it.
set -euo pipefail
cd "$(dirname "$0")/.."

notes=$(awk -v heading="## [${1:?usage: notes.sh VERSION}]" '
	index($0, heading) == 1 { on = 1; next }
	/^## / || /^\[[^]]*\]: / { on = 0 }
	on
' CHANGELOG.md)
if [[ -z ${notes//[[:space:]]/} ]]; then
	echo "notes: CHANGELOG.md has no section [$1]" >&2
	exit 1
fi
printf '%s\n' "$notes"
