#!/bin/bash
# build.sh DIR [controlplane|cluster]: builds the binaries of a real Kubernetes for tests and puts them into DIR.
#
#   controlplane   etcd and kube-apiserver in one binary. The default. About 5 minutes on 2 cores, 1 minute with more.
#   cluster        all that a one-node cluster needs: control plane, kubelet, kube-proxy, kubectl, containerd, CNI, images.
#
# What was built is kept in $LEVADA_KUBE_CACHE (default ~/.cache/levada-kube) under a hash of all that it was made from,
# and is not built again; with LEVADA_KUBE_FIND=1 nothing is built at all, and the exit code is 3 if it is not there. The last line on stdout is the folder that holds it; DIR gets links into it ("-" for DIR: none).
set -euo pipefail

dir=${1:?usage: build.sh DIR [controlplane|cluster]}
target=${2:-controlplane}
cd "$(dirname "$(readlink -f "$0")")"
export GOTOOLCHAIN=${GOTOOLCHAIN:-auto} CGO_ENABLED=0 GOWORK=off GOFLAGS="-mod=readonly -trimpath -buildvcs=false"

case $target in
controlplane) from="go.mod go.sum build.sh cmd/controlplane" ;;
cluster) from="go.mod go.sum build.sh cmd" ;;
*) echo "build.sh: unknown target $target, expected controlplane or cluster" >&2; exit 2 ;;
esac
# shellcheck disable=SC2086
hash=$({ go env GOVERSION GOOS GOARCH; find $from -type f | LC_ALL=C sort | xargs sha256sum; } | sha256sum | cut -c1-16)
cache=${LEVADA_KUBE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/levada-kube}
out=$cache/$target-$hash

# The version that Kubernetes says it has; without these flags it says v0.0.0-master, and clients refuse that.
kube=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${kube#v1.}
pkg=k8s.io/component-base/version
version="-X $pkg.gitVersion=$kube -X $pkg.gitMajor=1 -X $pkg.gitMinor=${minor%%.*} -X $pkg.gitTreeState=clean"
version+=" -X $pkg.gitCommit=0000000000000000000000000000000000000000 -X $pkg.buildDate=2026-01-01T00:00:00Z"

build() { # output package [tags]: one package at a time, since tests and an editor may want the machine too
	echo "build.sh: building $2 (in $cache, once)" >&2
	nice -n 10 go build -p "${LEVADA_KUBE_JOBS:-1}" -tags "${3:-}" -ldflags "-s -w $version" -o "$1" "$2"
}

if [ ! -d "$out" ]; then
	if [ -n "${LEVADA_KUBE_FIND:-}" ]; then
		echo "build.sh: $out is not there" >&2
		exit 3
	fi
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock 9 # somebody else may be building it: then it is there when we come in
fi
if [ ! -d "$out" ]; then
	tmp=$(mktemp -d "$cache/building.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	case $target in
	controlplane)
		build "$tmp/controlplane" ./cmd/controlplane
		ln -s controlplane "$tmp/etcd"
		ln -s controlplane "$tmp/kube-apiserver"
		;;
	cluster)
		build "$tmp/node" ./cmd/node
		for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl coredns; do ln -s node "$tmp/$name"; done
		containerd=github.com/containerd/containerd/v2
		version="$version -X $containerd/version.Version=$(go list -m -f '{{.Version}}' $containerd)"
		for name in containerd containerd-shim-runc-v2 ctr; do build "$tmp/$name" $containerd/cmd/$name no_btrfs,no_devmapper,no_zfs,no_aufs; done
		mkdir "$tmp/cni" "$tmp/images"
		for name in main/bridge main/loopback ipam/host-local; do
			build "$tmp/cni/${name#*/}" github.com/containernetworking/plugins/plugins/$name
		done
		build "$tmp/image" ./cmd/image
		for name in pause victim; do
			build "$tmp/$name" ./cmd/$name
			"$tmp/image" levada.local/$name:1 "$tmp/$name" "$tmp/images/$name.tar"
		done
		# runc needs C to be built: Debian's is taken, without installing it.
		if runc=$(command -v runc); then
			ln -s "$runc" "$tmp/runc"
		else
			(cd "$tmp" && apt-get download -qq runc >&2 && dpkg -x runc_*.deb deb && mv deb/usr/sbin/runc runc && rm -rf deb runc_*.deb)
		fi
		;;
	esac
	mv "$tmp" "$out"
	chmod 755 "$out"
fi
if [ "$dir" != - ]; then
	mkdir -p "$dir"
	ln -sfn "$out"/* "$dir"/
fi
echo "$out"
