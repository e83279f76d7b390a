# `make run` starts the gateway, `make test` runs everything that CI runs. Both install what is missing first.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
# Most tests wait, for sockets, for media in real time and for deadlines: more of them at a time than there are cores.
TEST_THREADS ?= $(shell cores=$$(nproc 2>/dev/null || echo 1); echo $$((cores > 4 ? cores : 4)))
BENCH_ARGS ?=
# Where `make clients-test` keeps its programs: 6 GB, made once.
TESTBED ?= /var/cache/millstream-testbed

.PHONY: help run build test check lint deny features unit-test load-test interop-test clients-test browser-test fuzz fuzz-short bench hls-start-bench callgrind hostile deb deb-test image image-test source-faults clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Install what the build needs, build the release, start the gateway with a test picture (ARGS="--config FILE")
	@scripts/setup.sh run
	$(CARGO) build --release --locked
	target/release/millstream serve --demo $(ARGS)

build: ## Build the release: target/release/millstream
	@scripts/setup.sh run
	$(CARGO) build --release --locked

test: ## Install what the tests need, then check, features, unit-test, load-test, interop-test, browser-test and fuzz-short
	@scripts/setup.sh run test
	@$(MAKE) --no-print-directory check
	@scripts/skips.sh $(MAKE) --no-print-directory --jobs=1 features unit-test load-test interop-test browser-test fuzz-short

check: lint deny ## Formatting, lints, docs, and the licences and origins of dependencies

lint:
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --workspace --no-deps --document-private-items --locked --quiet

deny: ## Dependencies alone: bans, licences, sources, and advisories when their database can be reached
	@scripts/deny.sh

features: ## Each feature alone and none at all, and the minimum Rust version
	@scripts/features.sh

unit-test: ## All Rust tests
	RUST_TEST_THREADS=$(TEST_THREADS) scripts/slowest.sh $(CARGO) \
		--config 'target."cfg(all())".runner = "scripts/timed-test.sh"' test --workspace --locked

browser-test: ## Real Chromium and Firefox against the gateway (BROWSER_TEST=name to pick tests)
	$(CARGO) build --workspace --locked
	cd tests/browser && npm ci --no-audit --no-fund --silent
	scripts/slowest.sh tests/browser/run.sh $(if $(BROWSER_TEST),--test-name-pattern="$(BROWSER_TEST)")

load-test: ## The short forms of bench and hostile: judged by loss and survival, not by time
	$(CARGO) build --workspace --locked
	target/debug/millstream-bench --gateway target/debug/millstream --short
	target/debug/millstream-bench chaos hostile --gateway target/debug/millstream --datagrams 100000
	target/debug/millstream-bench chaos tokens --gateway target/debug/millstream --tokens 5000

interop-test: ## Other stacks publish and watch: aiortc
	$(CARGO) build --workspace --locked
	[ -x target/interop/bin/python ] || python3 -m venv target/interop
	target/interop/bin/pip install --quiet --disable-pip-version-check -r tests/interop/requirements.txt
	target/interop/bin/python tests/interop/aiortc_peers.py target/debug/millstream

clients-test: ## OBS, FFmpeg, GStreamer, browsers and players against the gateway, also over loss (root; see docs/clients.md)
	$(CARGO) build --workspace --locked
	tests/clients/testbed.sh build $(TESTBED)
	cd tests/clients && npm ci --no-audit --no-fund --silent
	cd tests/browser && npm ci --no-audit --no-fund --silent
	CLIENT_WRAPPER="$(CURDIR)/tests/clients/testbed.sh run $(TESTBED)" GST_PLUGIN_PATH=/opt/gstplugins \
		python3 tests/clients/clients.py target/debug/millstream $(CLIENTS_TEST)

fuzz: ## Each fuzz target for ten minutes (FUZZ_SECONDS), all parsers of bytes from outside; see fuzz/README.md
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} scripts/fuzz.sh

fuzz-short: ## The same inputs each time, about 30 seconds per target: a failure is of the change and not of chance
	@FUZZ_SHORT=1 FUZZ_SECONDS=$${FUZZ_SECONDS:-60} scripts/fuzz.sh

bench: build ## Viewers per core against the floor of the same run (BENCH_ARGS="--viewers 200 --seconds 10")
	$(CARGO) run --release --locked -p millstream-bench -- $(BENCH_ARGS)

hls-start-bench: build ## How plain hls.js in Chromium starts on our LL-HLS: first frame, delay, errors (ARGS="--starts 20 --gop 2")
	@scripts/setup.sh test
	cd tests/browser && npm ci --no-audit --no-fund --silent
	$(CARGO) build --release --locked -p millstream-bench
	cd tests/browser && MILLSTREAM_BIN=target/release/millstream \
		MILLSTREAM_BENCH_BIN=../../target/release/millstream-bench node hls-start-bench.js $(ARGS)

callgrind: ## Instructions per packet that is forwarded to one viewer (needs valgrind; PROFILE=file keeps the profile)
	@PROFILE="$(PROFILE)" scripts/callgrind.sh

hostile: build ## A million mutated datagrams, and a hundred thousand wrong tokens, while a viewer watches
	$(CARGO) run --release --locked -p millstream-bench -- chaos hostile
	$(CARGO) run --release --locked -p millstream-bench -- chaos tokens

deb: ## The Debian package: target/debian/millstream_*.deb
	@scripts/setup.sh run
	@scripts/deb.sh

deb-test: ## The same, installed in a bare Debian 12 and run there (needs root)
	@scripts/setup.sh run
	@scripts/deb.sh test

image: ## The container image `millstream`, by docker or podman
	@scripts/image.sh

image-test: ## The same, run without privileges, and watched by a browser
	@scripts/setup.sh run test
	@scripts/image.sh test

source-faults: ## Cameras and workers that fail twenty times each, and a thousand workers started and stopped
	@scripts/setup.sh run test
	CAMERA_ROUNDS=20 $(CARGO) test --workspace --locked --test sources rtsp::faults -- --nocapture --test-threads 1
	WORKER_ROUNDS=20 $(CARGO) test --workspace --locked --test sources faults_in -- --nocapture
	ORIGIN_OUTAGE=60 $(CARGO) test --workspace --locked --test sources pipeline::origins -- --nocapture
	WORKER_CYCLES=1000 $(CARGO) test --workspace --locked --test sources workers_leave -- --nocapture

clean: ## Remove everything that was built
	$(CARGO) clean
	rm -rf tests/browser/node_modules
