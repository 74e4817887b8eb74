# The commands of this project; `make` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help tools cluster-tools build image local-image demo cluster generate verify lint test test-unit test-faults test-slow bench bench-fleet fuzz release clean

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
PLATFORMS := linux/amd64,linux/arm64

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

tools: ## Build the tools once per machine (minutes when cold), link them in bin/tools
	@hack/deps.sh
	@hack/tools/build.sh

# Some of them, for the targets that need no others.
cluster-tools:
	@hack/deps.sh
	@hack/tools/build.sh containerd runc etcd kubernetes helm

tool-%:
	@hack/tools/build.sh $*

build: ## Build bin/agent, for nodes, and bin/tarlift, for desks: each one static file
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/agent ./cmd/tarlift

IMAGE := go run ./hack/image -name ghcr.io/tarlift/agent:$(VERSION) -ldflags '$(LDFLAGS)'

image: ## Build the agent's image for amd64 and arm64: bin/agent-image.tar, an OCI archive
	$(IMAGE) -platforms $(PLATFORMS) -o bin/agent-image.tar

# For demo and tests: another platform takes minutes to compile when cold. It must not lie where operators find the image.
local-image:
	$(IMAGE) -platforms linux/$(shell go env GOARCH) -o bin/test/agent-image.tar

demo: cluster-tools build local-image ## Bring an archive to a cluster of three nodes (needs root); KEEP=1 keeps it, with a shell
	go run ./test/demo/archive -o bin/demo.tar
	go build -o bin/ ./test/demo
	bin/demo -archive bin/demo.tar $(if $(KEEP),-keep)

cluster: cluster-tools ## Start a cluster of three nodes and a shell in it (needs root)
	go build -o bin/ ./test/cluster/cmd/cluster
	bin/cluster

generate: tool-controller-gen ## Generate deep copies, CRDs (also the chart's) and the page of values
	bin/tools/controller-gen object crd paths=./api/... output:crd:dir=config/crd
	mkdir -p charts/tarlift/files/crds
	cp config/crd/*.yaml charts/tarlift/files/crds/
	go run ./hack/values <charts/tarlift/values.yaml >docs/values.md

verify: generate ## Fail unless all that is generated, formatted and tidied is committed
	@hack/verify.sh

lint: tool-golangci-lint ## Run the linters of .golangci.yml
	bin/tools/golangci-lint run

# internal/archive reads archives of gigabytes and of a million members, which takes seven times as long with the race
# detector: that is for `make test`. There root lays down what others may not do, but uses the files of whoever called sudo.
test: RACE := -race
test: UNPRIVILEGED := setpriv --inh-caps=-all --bounding-set=-all,+dac_override,+dac_read_search,+chown,+fowner,+setfcap

test-unit: ## Run the tests that need no daemon, in three minutes; whoever runs them need not be root
	$(UNPRIVILEGED) go test -race -count=1 $$(go list ./api/... ./cmd/... ./controllers/... ./hack/... ./internal/... | grep -v /internal/archive$$)
	$(UNPRIVILEGED) go test $(RACE) -count=1 ./internal/archive

# One package at a time: a cluster wants the machine to itself.
test: tools build local-image test-unit ## Run every test (needs root)
	@hack/deps.sh test
	$(MAKE) fuzz FUZZTIME=15s
	go test -count=1 -p 1 -timeout 40m ./test/...

SEED ?= 1

test-faults: ## Kill the agent, containerd and the power at every point of an import (needs root, 35 minutes); SEED=n
	@hack/deps.sh
	@hack/tools/build.sh containerd containerd-1.7 runc
	go test -count=1 -v -timeout 60m ./test/faults -full -seed $(SEED)

AWAY ?= 2m

test-slow: tools build local-image ## Wait for the kubelet's own garbage collection, without an API server, and idly (needs root, 15 minutes); AWAY=10m
	@hack/deps.sh test
	go test -count=1 -v -timeout 30m -run 'KubeletCollectsImages|APIServerAway' ./test/e2e -slow -away $(AWAY)
	go test -count=1 -v -timeout 10m -run IdleAgent ./test/fleet -slow

bench: build ## Measure the agent beside ctr (needs root); BENCH=case for one, PAIRS=n, BUSY=1
	@hack/deps.sh
	@hack/tools/build.sh containerd runc
	go build -o bin/ ./test/bench
	bin/bench $(if $(BENCH),-case $(BENCH)) $(if $(PAIRS),-pairs $(PAIRS)) $(if $(BUSY),-busy)

NODES ?= 5000
ARCHIVES ?= 20

bench-fleet: build ## Measure what a fleet asks of an API server (15 GiB, more than two cores); NODES=n ARCHIVES=n
	@hack/deps.sh
	@hack/tools/build.sh etcd kubernetes
	go build -o bin/ ./test/fleet
	bin/fleet -nodes $(NODES) -archives $(ARCHIVES)

FUZZTIME ?= 1m

FUZZ_ARCHIVE := FuzzTar FuzzLayout FuzzNames
FUZZ_IMPORTER := FuzzImport
# An import takes milliseconds: to make small what is merely interesting would take all of the time.
FUZZ := go test -run '^$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 50x -fuzz

fuzz: ## Feed made-up bytes to archive reader and importer, FUZZTIME for each target
	$(foreach f,$(FUZZ_ARCHIVE),$(FUZZ) '^$f$$' ./internal/archive;) \
	$(foreach f,$(FUZZ_IMPORTER),$(FUZZ) '^$f$$' ./internal/importer;)

release: tool-helm ## Write a release into dist: VERSION=1.2.3; DIRTY=1 with what is not committed
	rm -rf dist
	go run ./hack/release -version '$(VERSION)' -ldflags '$(LDFLAGS)' -platforms $(PLATFORMS) $(if $(DIRTY),-dirty) -o dist

clean: ## Remove bin and dist; the tools stay in the cache
	rm -rf bin dist
