# The commands of this repository. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# What is built once and kept outside the checkout: cargo's target folder, the
# programs of Kubernetes, images, and the files of running clusters.
export CREO_CACHE_DIR
ifeq ($(shell id -u),0)
CREO_CACHE_DIR := $(or $(CREO_CACHE_DIR),/var/cache/creo-e2e)
AS_ROOT :=
else
CREO_CACHE_DIR := $(or $(CREO_CACHE_DIR),$(HOME)/.cache/creo-e2e)
AS_ROOT = sudo env "PATH=$(PATH)" "HOME=$(HOME)" "CREO_CACHE_DIR=$(CREO_CACHE_DIR)" "CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)"
endif
export CARGO_TARGET_DIR
CARGO_TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CREO_CACHE_DIR)/target)
E2E = $(AS_ROOT) $(CARGO_TARGET_DIR)/debug/creo-e2e

# How many cases of each long plan `make test` runs, and of which seed: the same
# ones for everyone, so that a failure is the change's and not the draw's.
SAMPLE ?= 1
SEED ?= 1
PLAN ?=

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps build-e2e ## From nothing to an answered request, on a local Kubernetes.
	@$(E2E) demo $(if $(GPUS),--gpus $(GPUS))

.PHONY: demo-down
demo-down: build-e2e ## End the demo's cluster and remove every trace of it.
	@$(E2E) cluster down

# The tests with clusters wait more than they work; those that may not run side by
# side see to that themselves.
export RUST_TEST_THREADS ?= 4

.PHONY: test
test: deps lint build-e2e ## Every check and every test, on a real cluster.
	@$(AS_ROOT) cargo test --quiet --workspace --locked
	@$(E2E) prove --sample $(SAMPLE) $(if $(SEED),--seed $(SEED))

.PHONY: lint
lint: own-target ## Formatting and lints.
	@cargo fmt --check
	@cargo clippy --quiet --workspace --all-targets --locked -- --deny warnings

.PHONY: prove
prove: deps build-e2e ## The long plans in full; RESUME=1 goes on, PLAN=... and SEED=... choose.
	@$(E2E) prove $(if $(PLAN),--plan $(PLAN)) $(if $(SEED),--seed $(SEED)) $(if $(RESUME),--resume)

.PHONY: bench
bench: deps build-e2e ## Measure; writes target/bench/report.json.
	@$(E2E) bench

.PHONY: crds
crds: own-target ## Write crds/ anew from the types in src/api.
	@CREO_REGENERATE=1 cargo test --quiet --locked -p creo-api --test generated_crds

.PHONY: images
images: deps own-target ## Build the images; REGISTRY=... TAG=... PUSH=1 for a cluster of your own.
	@$(AS_ROOT) e2e/images/build $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(TAG),--tag $(TAG)) $(if $(PUSH),--push)

.PHONY: deps
deps: ## Install what the local cluster needs of Debian's packages.
	@$(AS_ROOT) e2e/install-packages

# A line when it is done, like those of creo-e2e itself.
.PHONY: build-e2e
build-e2e: own-target
	@begun=$$EPOCHREALTIME; \
	cargo build --quiet --locked -p creo-e2e -p creo-nvml-stand-in; \
	awk -v begun="$$begun" -v done="$$EPOCHREALTIME" \
		'BEGIN { printf "    ok %7.1f s  build creo-e2e\n", done - begun }' >&2

# cargo tells what is fresh by file times alone, so what another checkout built
# into the shared folder could be taken for ours.
.PHONY: own-target
own-target:
	@mkdir -p $(CARGO_TARGET_DIR)
	@if [[ "$$(cat $(CARGO_TARGET_DIR)/checkout 2>/dev/null)" != "$(CURDIR)" ]]; then \
		find src gpu-device-plugin e2e -name '*.rs' -o -name '*.proto' -o -name Cargo.toml | xargs touch; \
		echo "$(CURDIR)" > $(CARGO_TARGET_DIR)/checkout; \
	fi
