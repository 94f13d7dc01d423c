# `make help` lists the targets. Only Go is needed; an older Go fetches the version in go.mod by itself.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export GOTOOLCHAIN := auto

ifeq ($(shell command -v go),)
$(error go is missing: install Go 1.21 or newer from https://go.dev/dl/, it fetches the version in go.mod by itself)
endif

RUN ?= .
CASE ?=
FUZZTIME ?= 30s
# The race detector needs a C compiler; without one the tests run without it.
RACE := $(if $(and $(filter 1,$(shell GOTOOLCHAIN=local go env CGO_ENABLED)),$(shell command -v gcc || command -v clang)),-race)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

.PHONY: build
build: ## Build bin/levada, bin/levada-proxy (the proxy alone), and the example functions in bin/functions/
	@mkdir -p bin/functions
	go build -ldflags '-s -w' -o bin/ ./cmd/levada ./cmd/levada-proxy
	go build -ldflags '-s -w' -o bin/functions/ $$(go list -f '{{if eq .Name "main"}}{{.ImportPath}}{{end}}' ./examples/functions/...)

.PHONY: check
check: ## Formatting, go vet, staticcheck and the analyzers of tools/lint: no finding is left
	@unformatted=$$("$$(go env GOROOT)/bin/gofmt" -l $$(git ls-files --cached --others --exclude-standard '*.go' | while read -r f; do [ -f "$$f" ] && echo "$$f"; done)); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	go vet work && GOWORK=off go -C tools/generate vet ./...
	"$$(GOWORK=off go -C tools tool -n staticcheck)" $$(go list work)
	go vet -vettool="$$(GOWORK=off go -C tools tool -n lint)" work
	GOWORK=off go -C tools/generate run ./modules check

# Where goroutines meet runs with the race detector; the rest has none, or runs programs that it would not look into.
.PHONY: test
test: ## All tests: make test PKG=./internal/flow RUN=TestBlock for some
ifdef PKG
	go test $(RACE) -timeout 30m -run '$(RUN)' $(PKG)
else
	@failed=0; \
	if [ "$$CI" = true ]; then LEVADA_KUBE_JOBS=2 bash test/kube/build.sh - controlplane > /dev/null || exit 1; fi; \
	plain="$$(go list work | grep -vE '^github.com/levada-io/levada/((internal|sdk|stream)(/|$$)|test/proxy/)') ./internal/manifest"; \
	racing=$$(go list work | grep -E '^github.com/levada-io/levada/(internal|sdk|stream)(/|$$)' | grep -v '/internal/manifest$$'); \
	echo "go test (without the race detector)"; go test -timeout 15m -run '$(RUN)' $$plain || failed=1; \
	echo "go test of the proxy as a process (one after the other, since some measure times)"; go test -p 1 -timeout 20m -run '$(RUN)' ./test/proxy/... || failed=1; \
	if [ '$(RUN)' = . ]; then echo "go test: 10,000 seeds of the simulation of shards"; SHARD_SEEDS=10000 go test -timeout 15m -run '^TestSimulation$$' ./internal/dataplane/shard || failed=1; fi; \
	if [ '$(RUN)' = . ]; then echo "go test: 1,000 seeds of the simulation of a shared vertex"; SHARING_SEEDS=1000 go test -timeout 15m -run '^TestSharedVertexInVirtualTime$$' ./internal/dataplane/engine || failed=1; fi; \
	if [ '$(RUN)' = . ]; then echo "go test: 10,000 seeds of the simulation of streams"; SIM_SEEDS=10000 go test -timeout 15m -run '^TestSimulation$$' ./stream || failed=1; fi; \
	echo "go test $(RACE)"; go test $(RACE) -timeout 20m -run '$(RUN)' $$racing || failed=1; \
	exit $$failed
endif

.PHONY: e2e
e2e: ## Run every manifest of examples/ and compare what comes out
	go test -count=1 -timeout 10m -v -run '$(RUN)' ./test/e2e/...

.PHONY: faults
faults: ## Kill everything again and again under a million messages and records, and count: takes long
	LEDGER_LINES=$${LEDGER_LINES:-1000000} LEDGER_KILLS=$${LEDGER_KILLS:-50} LEDGER_ENDS=$${LEDGER_ENDS:-1000} POWERLOSS_CUTS=$${POWERLOSS_CUTS:-20} STREAM_RECORDS=$${STREAM_RECORDS:-1000000} STREAM_KILLS=$${STREAM_KILLS:-200} go test -count=1 -timeout 6h -v -run '$(RUN)' ./test/faults/...

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (30s each)
	@set -euo pipefail; grep -rnoE '^func Fuzz[A-Za-z0-9]+' --include='*_test.go' . | sed -E 's/^(.*)\/[^/]+:[0-9]+:func (.*)$$/\1 \2/' | sort | while read -r dir name; do \
		echo "$$dir $$name"; go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$dir" < /dev/null; \
	done

.PHONY: bench
bench: ## Benchmarks: make bench CASE=name for one of bench/cases/
	bash bench/run.sh $(CASE)

.PHONY: generate
generate: ## Regenerate the Go code of proto/, the deep copies of api/, and docs/reference.md
	GOWORK=off go -C tools/generate run .
	go test ./docs -run TestReferenceIsGenerated -update

.PHONY: generated
generated: ## Regenerate the Go code, and fail if that changes a file
	@before=$$(mktemp -d) && trap 'rm -rf "$$before"' EXIT && cp -r proto api "$$before/" && GOWORK=off go -C tools/generate run . && \
	for d in proto api; do diff -r "$$before/$$d" $$d || { echo "$$d/ had stale generated files: commit what \`make generate\` writes"; exit 1; }; done

.PHONY: tidy
tidy: ## go mod tidy in every module of go.work
	GOWORK=off go -C tools/generate run ./modules tidy

.PHONY: clean
clean: ## Remove what was built and what the examples wrote
	rm -rf bin examples/.levada examples/*.out*
