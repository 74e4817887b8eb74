#!/usr/bin/env bash
# usage: build.sh [TOOL]...   (default: every tool)
#
# Builds tools from their pinned modules, once per machine, and links their
# programs in bin/tools. What a build depends on (module files, flags, Go
# release) is hashed into the name of its cache entry, so an entry is never
# stale, and a fresh clone finds the entries of its siblings. The programs of an
# older release, a tool such as containerd-1.7, have the same names as those of
# the present one: they are linked in a directory of their own, bin/tools/TOOL.
set -euo pipefail
cd "$(dirname "$0")"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/tarlift/tools
bin=$(cd ../.. && pwd)/bin/tools
all=(containerd containerd-1.7 runc etcd kubernetes helm crane controller-gen golangci-lint)

# version MODULE-PATH prints the version that the tool's go.mod pins.
version() { awk -v path="$1" '$1 == path { print $2; exit } $2 == path { print $3; exit }' "$tool/go.mod"; }

# stamp VARIABLE VALUE links a version into a program that has none of its own.
stamp() { ldflags+=" -X $1=$2"; }

# The table: how each tool differs from `CGO_ENABLED=0 go build tool`.
settings() {
	cgo=0 tags='' ldflags='-s -w' packages=tool
	case $tool in
	containerd | containerd-*)
		tags=no_btrfs,no_zfs,no_devmapper,no_aufs
		local module=github.com/containerd/containerd/v2
		[[ $tool != containerd-1.* ]] || module=${module%/v2}
		stamp "$module/version.Version" "$(version "$module")"
		;;
	runc) # cgo: without libseccomp it refuses every pod, since the kubelet always asks for a profile
		cgo=1 tags=seccomp,netgo,osusergo
		ldflags+=' -extldflags -static'
		;;
	kubernetes) # helm refuses a server that reports no version
		packages=.
		local release minor pkg
		release=$(version k8s.io/kubernetes)
		minor=${release#v1.}
		for pkg in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
			stamp $pkg.gitVersion "$release"
			stamp $pkg.gitMajor 1
			stamp $pkg.gitMinor "${minor%%.*}"
			stamp $pkg.gitTreeState clean
		done
		;;
	helm) stamp helm.sh/helm/v4/internal/version.version "$(version helm.sh/helm/v4)" ;;
	crane) stamp github.com/google/go-containerregistry/cmd/crane/cmd.Version "$(version github.com/google/go-containerregistry)" ;;
	controller-gen) # writes its version into every CRD
		stamp sigs.k8s.io/controller-tools/pkg/version.version "$(version sigs.k8s.io/controller-tools)"
		;;
	golangci-lint) stamp main.version "$(version github.com/golangci/golangci-lint/v2)" ;;
	esac
}

# finish DIR gives the programs in DIR the names that they are called by.
finish() {
	case $tool in
	etcd) mv "$1/server" "$1/etcd" ;;
	kubernetes)
		local name
		for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl; do
			ln -s kubernetes "$1/$name"
		done
		;;
	esac
}

# build ENTRY fills a cache entry. Runs side by side wait for one another; one
# that is interrupted leaves only a *.partial, which the next one replaces.
build() {
	local entry=$1 partial=$1.partial start=$SECONDS
	exec 9>"$cache/$tool.lock"
	flock 9
	if [[ ! -d $entry ]]; then
		echo "tools: building $tool"
		rm -rf "$partial"
		mkdir "$partial"
		(cd "$tool" && CGO_ENABLED=$cgo GOWORK=off go build -trimpath -tags "$tags" -ldflags "$ldflags" -o "$partial/" "$packages")
		finish "$partial"
		mv -T "$partial" "$entry"
		echo "tools: built $tool in $((SECONDS - start)) s"
	fi
	exec 9>&-
}

mkdir -p "$cache"
release=$(go env GOVERSION GOOS GOARCH)
for tool in "${@:-${all[@]}}"; do
	if [[ ! -f $tool/go.mod ]]; then
		echo "build.sh: no tool named $tool; there are: ${all[*]}" >&2
		exit 2
	fi
	settings
	key=$({ echo "$release $cgo $tags $ldflags" && cat "$tool"/go.mod "$tool"/go.sum $(find "$tool" -name '*.go' | sort); } | sha256sum)
	entry=$cache/$tool-${key:0:12}
	[[ -d $entry ]] || build "$entry"
	links=$bin
	[[ $tool != *-[0-9]* ]] || links=$bin/$tool
	mkdir -p "$links"
	ln -sf "$entry"/* "$links/"
done
