#!/usr/bin/env bash
# Checks for the system packages that building the tools and running the tests
# needs, those that only the tests need with the argument "test". Installs what
# is missing where it may (root, apt-get); elsewhere it says what to install.
# When nothing is missing it takes milliseconds.
set -euo pipefail

PATH+=:/usr/sbin:/sbin # ip is there, and not everybody looks there
missing=()
# need PACKAGE TEST... notes Debian's PACKAGE as missing unless TEST succeeds.
need() {
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}

# have PROGRAM... succeeds if all of them can be found.
have() {
	local program
	for program; do command -v "$program" || return; done
}

static_seccomp() { [[ -f $(pkg-config --variable=libdir libseccomp)/libseccomp.a ]]; }

need gcc have gcc
need libc6-dev test -f /usr/include/stdlib.h
need pkg-config have pkg-config
need libseccomp-dev static_seccomp # runc links it
need iproute2 have ip              # the test cluster's addresses
need mount have mount umount       # the kubelets run them
need util-linux have flock setpriv # one build of a tool at a time; tests that lay down root's rights
if [[ ${1-} == test ]]; then
	need e2fsprogs have mkfs.ext4 # a file system whose power is cut
	need nginx have nginx         # web servers that archives are imported from
	need python3 have python3
fi

[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
	echo "deps: installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	# The tests start what they need: no package is to start or enable a server of its own.
	policy=/usr/sbin/policy-rc.d
	if [[ ! -e $policy ]]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
	if [[ " ${missing[*]} " == *" nginx "* ]] && have systemctl; then systemctl --quiet disable nginx; fi
else
	echo "deps: please install (Debian's names): ${missing[*]}" >&2
	exit 1
fi
