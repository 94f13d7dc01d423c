#!/usr/bin/env bash
# Runs the cases named, or all: bash bench/run.sh [CASE...]
set -euo pipefail
cd "$(dirname "$0")/.."
export GOTOOLCHAIN=auto
exec go run ./bench "$@"
