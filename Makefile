# `make` lists the targets. The work is done by scripts/, which also run without make.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
EADEM := $(TARGET_DIR)/debug/eadem
DEMO_DIR ?= eadem-demo
DEMO_FLAGS ?=
BAR ?=

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what is missing: a C compiler, a toolchain for WebAssembly
	@scripts/setup.sh

.PHONY: build
build: setup ## Compile the store and its tools
	$(CARGO) build --locked --workspace

.PHONY: release
release: setup ## Compile the store as it is run in production: target/release/eadem (TARGET_CPU=…)
	@CARGO='$(CARGO)' scripts/release.sh

.PHONY: components
components: build ## Compile the transforms to components, into target/components
	@scripts/components.sh

.PHONY: services
services: setup ## Build or fetch the servers that tests run against, into target/services (once)
	@tests/services/s3.sh build
	@tests/services/cassandra.sh fetch
	@tests/services/schemathesis.sh fetch

.PHONY: demo
demo: build ## Show the whole loop on the 2013 New York flights; leaves eadem-demo/ (DEMO_DIR=…, DEMO_FLAGS=--plant)
	$(EADEM) demo --dir '$(DEMO_DIR)' $(DEMO_FLAGS)

.PHONY: test
test: components services ## Run the whole test suite
	@scripts/test.sh

.PHONY: soak
soak: components services ## Run the tests with the full counts of property, fuzz and kill cases
	@EADEM_SOAK=1 scripts/test.sh

.PHONY: bench
bench: setup ## Measure every bar, or one (BAR=F2), into target/bench/results.json
	@scripts/bench.sh $(BAR)

.PHONY: lint
lint: ## Check format, clippy's findings, licences, bans, sources and advisories
	$(CARGO) fmt --all --check
	$(CARGO) fmt --all --check --manifest-path transforms/Cargo.toml
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@# Not the hostile examples: outside of a component nothing refers to what they export.
	$(CARGO) clippy --locked --workspace --lib --tests --manifest-path transforms/Cargo.toml -- -D warnings
	@scripts/deny.sh

.PHONY: fmt
fmt: ## Format the sources
	$(CARGO) fmt --all
	$(CARGO) fmt --all --manifest-path transforms/Cargo.toml

.PHONY: clean-demo
clean-demo: ## Remove what the demo left behind
	@if [[ -e '$(DEMO_DIR)' && ! -f '$(DEMO_DIR)/.eadem-demo' ]]; then \
	  printf '%s was not made by the demo; it stays\n' '$(DEMO_DIR)' >&2; exit 1; \
	fi
	rm -rf -- '$(DEMO_DIR)'
