#!/usr/bin/env bash
# Checks for the system packages that building the tools and running the tests
# needs. Installs what is missing where it may (root, apt-get); elsewhere it
# says what to install. When nothing is missing it takes milliseconds.
set -euo pipefail

missing=()
# need PACKAGE TEST... notes Debian's PACKAGE as missing unless TEST succeeds.
need() {
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}

static_seccomp() { [[ -f $(pkg-config --variable=libdir libseccomp)/libseccomp.a ]]; }

need gcc command -v gcc
need libc6-dev test -f /usr/include/stdlib.h
need pkg-config command -v pkg-config
need libseccomp-dev static_seccomp # runc links it statically
need iproute2 command -v ip        # addresses of the test cluster's nodes
need util-linux command -v unshare # the namespaces it lives in
need util-linux command -v flock   # one build of a tool at a time
need mount command -v mount

[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
	echo "deps: installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
	echo "deps: please install (Debian's names): ${missing[*]}" >&2
	exit 1
fi
