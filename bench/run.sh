#!/usr/bin/env bash
# Runs the cases named, or all: bash bench/run.sh [CASE...]
set -euo pipefail
cd "$(dirname "$0")/.."
export GOTOOLCHAIN=auto
case ${1:-} in
stream_*|streams) # gRPC streams have a bench of their own: streams [FLAGS] [CASE...] for all of them
	[ "$1" = streams ] && shift
	exec go run ./bench/streams "$@"
	;;
proxy_*|proxy) # proxies side by side: proxy [FLAGS] [CASE...] for all of them
	[ "$1" = proxy ] && shift
	exec go run ./bench/proxy "$@"
	;;
pipelines) # what many pipelines cost a broker: pipelines [FLAGS]
	shift
	exec go run ./bench/pipelines "$@"
	;;
esac
exec go run ./bench "$@"
