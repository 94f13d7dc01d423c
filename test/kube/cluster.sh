#!/bin/bash
# cluster.sh: a real Kubernetes with one node, in network, mount and host name namespaces of its own. Needs root, with CAP_SYS_ADMIN and
# CAP_NET_ADMIN, writable cgroups (tried with v1), and ip, openssl and nsenter. Without nft, Services have no addresses.
#
#   cluster.sh DIR up           builds what is missing and starts all; returns when the node is ready, 5 to 10 s later
#   cluster.sh DIR k ARGS...    kubectl
#   cluster.sh DIR x CMD...     a command in the cluster's namespaces; DIR/admin.kubeconfig works there
#   cluster.sh DIR down         stops all and removes what it made in DIR
#
# Images are levada.local/victim:1 (cmd/victim) and the archives that DIR/images holds before `up`; none is pulled. One cluster at
# a time: its containers are found by the cgroup kubepods.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
mkdir -p "${1:?usage: cluster.sh DIR up|k|x|down}"
dir=$(readlink -f "$1")
command=${2:?usage: cluster.sh DIR up|k|x|down}
shift 2
bin=$dir/bin
api=https://10.99.0.1:6443

inside() { nsenter --wd="$PWD" -t "$(cat "$dir/pid/namespace")" -n -m -u -- "$@"; }
kubectl() { inside "$bin/kubectl" --kubeconfig "$dir/admin.kubeconfig" "$@"; }

start() { # name command...
	local name=$1
	shift
	setsid nsenter -t "$(cat "$dir/pid/namespace")" -n -m -u -- "$@" >"$dir/log/$name.log" 2>&1 </dev/null &
	echo $! >"$dir/pid/$name"
}

stop() { # name: nothing of it is kept, and an API server without etcd never ends by itself
	[ -f "$dir/pid/$1" ] || return 0
	kill -9 "$(cat "$dir/pid/$1")" 2>/dev/null || true
	rm -f "$dir/pid/$1"
}

await() { # what command...
	local what=$1 end=$((SECONDS + 120))
	shift
	until "$@" >/dev/null 2>&1; do
		if [ $SECONDS -ge $end ]; then
			echo "cluster.sh: $what: not within 120 s; see $dir/log" >&2
			return 1
		fi
		sleep 0.1
	done
}

certificates() {
	local names="DNS:localhost,DNS:node1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.99.0.1,IP:10.96.0.1"
	mkdir -p "$dir/pki"
	cd "$dir/pki"
	key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
	key ca
	openssl req -x509 -new -key ca.key -subj /CN=test -days 30 -out ca.crt -addext basicConstraints=critical,CA:TRUE
	issue() { # name subject
		key "$1"
		openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
		openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" \
			-extfile <(echo "extendedKeyUsage=serverAuth,clientAuth"; echo "subjectAltName=$names")
	}
	issue apiserver /CN=kube-apiserver
	issue admin /O=system:masters/CN=admin
	issue controllers /CN=system:kube-controller-manager
	issue scheduler /CN=system:kube-scheduler
	issue kubelet /O=system:nodes/CN=system:node:node1
	issue proxy /CN=system:kube-proxy
	issue accounts /CN=accounts
	for user in admin controllers scheduler kubelet proxy; do
		cat >"$dir/$user.kubeconfig" <<-EOF
			apiVersion: v1
			kind: Config
			clusters: [{name: test, cluster: {server: "$api", certificate-authority: $dir/pki/ca.crt}}]
			users: [{name: $user, user: {client-certificate: $dir/pki/$user.crt, client-key: $dir/pki/$user.key}}]
			contexts: [{name: test, context: {cluster: test, user: $user}}]
			current-context: test
		EOF
	done
	cd - >/dev/null
}

namespaces() {
	unshare --net --mount --uts --propagation private bash -c 'mount --make-rshared /; hostname node1; exec sleep infinity' >/dev/null 2>&1 </dev/null &
	echo $! >"$dir/pid/namespace"
	await "the namespaces" inside sh -c '[ "$(hostname)" = node1 ]'
	# Paths that are compiled in get folders of ours. The address is on a veth pair so that there is a default route.
	inside bash -e -c "
		for path in /var/log /run/netns /var/lib/kubelet /var/lib/cni; do
			mkdir -p \$path $dir/private\$path
			mount --bind $dir/private\$path \$path
		done
		ip link set lo up
		ip link add node0 type veth peer name node0p
		ip addr add 10.99.0.1/24 dev node0
		ip link set node0 up
		ip link set node0p up
		ip route add default via 10.99.0.254 dev node0
		sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1
		sysctl -qw net.bridge.bridge-nf-call-iptables=1 || true"
}

control_plane() {
	local pki=$dir/pki
	start etcd "$bin/etcd" --data-dir "$dir/etcd" --unsafe-no-fsync --log-level error \
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380
	start apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --bind-address 10.99.0.1 --advertise-address 10.99.0.1 \
		--secure-port 6443 --service-cluster-ip-range 10.96.0.0/16 --cert-dir "$dir" --client-ca-file "$pki/ca.crt" \
		--tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
		--kubelet-client-certificate "$pki/admin.crt" --kubelet-client-key "$pki/admin.key" --kubelet-certificate-authority "$pki/ca.crt" \
		--kubelet-preferred-address-types InternalIP --service-account-issuer https://kubernetes.default.svc \
		--service-account-key-file "$pki/accounts.crt" --service-account-signing-key-file "$pki/accounts.key" \
		--authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged=true
	await "the API server is ready" kubectl get --raw /readyz
	# The default of 20 requests a second alone would cost 6 s of every start.
	start controllers "$bin/kube-controller-manager" --kubeconfig "$dir/controllers.kubeconfig" --use-service-account-credentials \
		--kube-api-qps 500 --kube-api-burst 1000 --service-account-private-key-file "$pki/accounts.key" --root-ca-file "$pki/ca.crt" \
		--leader-elect=false --cluster-cidr 10.244.0.0/16 --allocate-node-cidrs --node-monitor-period 2s --node-monitor-grace-period 16s \
		--cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key"
	start scheduler "$bin/kube-scheduler" --kubeconfig "$dir/scheduler.kubeconfig" --leader-elect=false
	await "the default service account is there" kubectl get serviceaccount default
}

node() {
	mkdir -p "$dir"/cni "$dir"/kubelet "$dir"/containerd/{root,state}
	cat >"$dir/cni/10-test.conflist" <<-EOF
		{"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
		 "ipam": {"type": "host-local", "dataDir": "$dir/cni/addresses", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
	EOF
	cat >"$dir/containerd.toml" <<-EOF
		version = 3
		root = "$dir/containerd/root"
		state = "$dir/containerd/state"
		[grpc]
		  address = "$dir/containerd.sock"
		[plugins."io.containerd.cri.v1.images".pinned_images]
		  sandbox = "levada.local/pause:1"
		[plugins."io.containerd.cri.v1.runtime"]
		  restrict_oom_score_adj = true # else the sandbox needs CAP_SYS_RESOURCE
		  [plugins."io.containerd.cri.v1.runtime".cni]
		    bin_dirs = ["$bin/cni"]
		    conf_dir = "$dir/cni"
		  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
		    runtime_type = "io.containerd.runc.v2"
		    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
		      BinaryName = "$bin/runc"
	EOF
	printf 'nameserver 127.0.0.1\n' >"$dir/resolv.conf"
	cat >"$dir/kubelet.yaml" <<-EOF
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		failCgroupV1: false
		cgroupDriver: cgroupfs
		failSwapOn: false
		containerRuntimeEndpoint: unix://$dir/containerd.sock
		imageServiceEndpoint: unix://$dir/containerd.sock
		authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/pki/ca.crt}}
		authorization: {mode: Webhook}
		tlsCertFile: $dir/pki/kubelet.crt
		tlsPrivateKeyFile: $dir/pki/kubelet.key
		clusterDNS: [10.99.0.1]
		clusterDomain: cluster.local
		resolvConf: $dir/resolv.conf
		evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
		imageGCHighThresholdPercent: 100
		podLogsDir: $dir/podlogs
	EOF
	start containerd env PATH="$bin:$PATH" "$bin/containerd" -c "$dir/containerd.toml"
	await "containerd answers" inside "$bin/ctr" -a "$dir/containerd.sock" version
	local image
	for image in "$bin"/images/*.tar "$dir"/images/*.tar; do
		[ -e "$image" ] || continue
		inside "$bin/ctr" -a "$dir/containerd.sock" -n k8s.io images import "$image" >>"$dir/log/import.log" 2>&1
	done
	start kubelet "$bin/kubelet" --config "$dir/kubelet.yaml" --kubeconfig "$dir/kubelet.kubeconfig" --root-dir "$dir/kubelet" --hostname-override node1 --node-ip 10.99.0.1
	cat >"$dir/proxy.yaml" <<-EOF
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: nftables
		clusterCIDR: 10.244.0.0/16
		hostnameOverride: node1
		clientConnection: {kubeconfig: $dir/proxy.kubeconfig}
		conntrack: {maxPerCore: 0, min: 0}
	EOF
	kubectl create clusterrolebinding node-proxier --clusterrole=system:node-proxier --user=system:kube-proxy >/dev/null
	if command -v nft >/dev/null; then
		start proxy "$bin/kube-proxy" --config "$dir/proxy.yaml"
	else
		echo "cluster.sh: there is no nft, so Services have no addresses" >&2
	fi
	printf '.:53 {\n\terrors\n\tkubernetes cluster.local in-addr.arpa {\n\t\tkubeconfig %s\n\t\tttl 1\n\t}\n}\n' "$dir/admin.kubeconfig" >"$dir/Corefile"
	start coredns "$bin/coredns" -conf "$dir/Corefile"
	await "the node is there" kubectl get node node1
	kubectl wait --for=condition=Ready node/node1 --timeout=120s >/dev/null
}

down() {
	local name group process mount
	for name in controllers scheduler coredns proxy kubelet apiserver etcd; do stop $name; done
	# Containers are found by their cgroup, their shims by the socket that they were given.
	for group in $(find /sys/fs/cgroup -path '*/kubepods/*' -name cgroup.procs 2>/dev/null); do
		for process in $(cat "$group" 2>/dev/null); do kill -9 "$process" 2>/dev/null || true; done
	done
	stop containerd
	for process in /proc/[0-9]*; do
		if tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q "containerd-shim-runc-v2 .*-address $dir/containerd.sock"; then
			kill -9 "${process#/proc/}" 2>/dev/null || true
		fi
	done
	if [ -f "$dir/pid/namespace" ]; then
		for mount in $(inside awk -v dir="$dir/" 'index($2, dir) == 1 || $2 ~ "^/run/netns/" {print $2}' /proc/mounts | sort -r); do inside umount -l "$mount" 2>/dev/null || true; done
		stop namespace
	fi
	find /sys/fs/cgroup -depth -type d \( -path '*/kubepods/*' -o -name kubepods -o -path '*/k8s.io/*' -o -name k8s.io \) -exec rmdir {} \; 2>/dev/null || true
	(cd "$dir" && rm -rf bin log pid pki private etcd cni kubelet containerd podlogs ./*.kubeconfig ./*.toml ./*.yaml ./*.sock* Corefile resolv.conf apiserver.*)
	rmdir "$dir" 2>/dev/null || true # images of the caller's may be left
}

case $command in
up)
	if [ -e "$dir/pid/namespace" ]; then echo "cluster.sh: $dir is in use: stop that cluster with \"cluster.sh $dir down\"" >&2; exit 1; fi
	mkdir -p "$dir"/{log,pid}
	ln -sfn "$("$here/build.sh" - cluster)" "$bin"
	certificates >"$dir/log/certificates.log" 2>&1
	namespaces
	control_plane
	node
	;;
k) kubectl "$@" ;;
x) inside "$@" ;;
down)
	if [ ! -d "$dir/pid" ]; then echo "cluster.sh: $dir holds no cluster" >&2; exit 1; fi
	down
	;;
*) echo "usage: cluster.sh DIR up|k|x|down" >&2; exit 2 ;;
esac
