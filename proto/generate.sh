#!/usr/bin/env bash
# Generates the Go code beside each .proto file. Run it from anywhere: bash proto/generate.sh
# It needs Go and npx. Plugin versions are pinned in tools/go.mod, buf's version here.
set -euo pipefail

buf_version=1.75.0

proto=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$proto/../tools

plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT

for plugin in google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc; do
	go -C "$tools" build -o "$plugins/" "$plugin"
done

cd "$proto"
buf() { PATH=$plugins:$PATH npx --yes "@bufbuild/buf@$buf_version" "$@"; }
buf lint
# Generated files of protos that are gone must not stay behind.
find . -name '*.pb.go' -delete
buf generate
