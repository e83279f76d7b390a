# `make run` starts the gateway, `make test` runs everything that CI runs. Both install what is missing first.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
# Seconds for each fuzz target in `fuzz-short`.
FUZZ_SECONDS ?= 30

.PHONY: help run build test check lint deny unit-test browser-test bench fuzz-short clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Install what the build needs, build the release and start the gateway (ARGS="--config FILE")
	@scripts/setup.sh run
	$(CARGO) build --release --locked
	target/release/millstream serve $(ARGS)

build: ## Build the release: target/release/millstream
	@scripts/setup.sh run
	$(CARGO) build --release --locked

test: ## Install what the tests need, then check, unit-test and browser-test
	@scripts/setup.sh run test
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory unit-test
	@$(MAKE) --no-print-directory browser-test

check: lint deny ## Formatting, lints, docs, and the licences and origins of dependencies

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet

deny: ## Dependencies alone: bans, licences, sources, and advisories when their database can be reached
	@scripts/deny.sh

unit-test: ## All Rust tests
	$(CARGO) test --workspace --locked

browser-test: ## Real Chromium and Firefox against the gateway (BROWSER_TEST=name to pick tests)
	$(CARGO) build --workspace --locked
	cd tests/browser && npm ci --no-audit --no-fund --silent
	cd tests/browser && node --test --test-concurrency=1 --test-reporter=spec \
		$(if $(BROWSER_TEST),--test-name-pattern="$(BROWSER_TEST)")

bench: ## Measure the media plane: tests/bench
	$(CARGO) run --release --locked -p millstream-bench

fuzz-short: ## A short run of every fuzz target (needs nightly Rust and cargo-fuzz)
	@if [ ! -d tests/fuzz ]; then echo "There are no fuzz targets in tests/fuzz."; exit 1; fi
	cd tests/fuzz && for target in $$(cargo +nightly fuzz list); do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS); done

clean: ## Remove everything that was built
	$(CARGO) clean
	rm -rf tests/browser/node_modules
