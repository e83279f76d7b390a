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

.PHONY: help run build test check lint deny features minimum-rust unit-test load-test interop-test operations-test clients-test loss-curve browser-test fuzz fuzz-short bench hls-start-bench callgrind hostile hls-beside soak chaos mutants mutants-sample deb deb-test dist unit-security image image-test source-faults source-frames pages-picture clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Install what the build needs, build the release, start the gateway with a test pattern (ARGS="--config FILE")
	@scripts/setup.sh run
	$(CARGO) build --release --locked
	target/release/millstream serve --demo $(ARGS)

build: ## Build the release: target/release/millstream
	@scripts/setup.sh run
	$(CARGO) build --release --locked

test: ## Install what the tests need, then everything that `check` does and the steps of the tests
	@scripts/setup.sh run test
	@# Once, before builds that run beside each other want it.
	@[ -e player/npm/node_modules/hls.js/dist/hls.min.js ] || \
		(cd player/npm && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --silent)
	@scripts/beside.sh target/beside.log $(MAKE) --no-print-directory steps-beside -- \
		$(MAKE) --no-print-directory --jobs=1 lint unit-security test-steps

.PHONY: test-steps steps-beside
test-steps:
	@scripts/skips.sh $(MAKE) --no-print-directory --jobs=1 features unit-test load-test interop-test operations-test browser-test

# What builds in folders of its own.
steps-beside:
	@ADVISORIES=warn scripts/skips.sh $(MAKE) --no-print-directory --jobs=1 deny fuzz-short minimum-rust

check: lint deny unit-security ## Formatting, lints, docs, licences and origins of dependencies, and the systemd unit

lint:
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --workspace --no-deps --document-private-items --locked --quiet

deny: ## Dependencies alone: bans, licences, sources, and advisories when their database can be reached
	@scripts/deny.sh

features: ## Each feature alone and none at all, and the minimum Rust versions of dependencies
	@scripts/features.sh

minimum-rust: ## The workspace compiled by the oldest supported Rust, where that is installed
	@scripts/features.sh --minimum-rust

unit-test: ## All Rust tests
	RUST_TEST_THREADS=$(TEST_THREADS) scripts/slowest.sh $(CARGO) \
		--config 'target."cfg(all())".runner = "scripts/timed-test.sh"' test --workspace --locked

browser-test: ## Real Chromium and Firefox against the gateway (BROWSER_TEST=name to pick tests)
	$(CARGO) build --workspace --locked
	cd tests/browser && npm ci --ignore-scripts --no-audit --no-fund --silent
	scripts/slowest.sh tests/browser/run.sh $(if $(BROWSER_TEST),--test-name-pattern="$(BROWSER_TEST)")

load-test: ## The short forms of bench and hostile: judged by loss and survival, not by time
	$(CARGO) build --workspace --locked
	target/debug/millstream-bench --gateway target/debug/millstream --short
	target/debug/millstream-bench chaos hostile --gateway target/debug/millstream --datagrams 100000 --requests 1000 --connections 200 --growth 16 --seed 1
	target/debug/millstream-bench chaos addresses tls --gateway target/debug/millstream --connections 500 --watchers 2 --growth 16 --seed 1
	target/debug/millstream-bench chaos addresses offers --gateway target/debug/millstream --connections 500 --watchers 2 --growth 16 --seed 1
	target/debug/millstream-bench chaos tokens --gateway target/debug/millstream --tokens 5000

interop-test: ## Other stacks publish and watch: aiortc
	$(CARGO) build --workspace --locked
	[ -x target/interop/bin/python ] || python3 -m venv target/interop
	target/interop/bin/pip install --quiet --disable-pip-version-check -r tests/interop/requirements.txt -c tests/interop/constraints.txt
	target/interop/bin/python tests/interop/aiortc_peers.py target/debug/millstream

operations-test: ## API by its OpenAPI document, metrics and dashboard by Prometheus, and the commands of the documentation
	$(CARGO) build --workspace --locked
	[ -x target/operations/bin/python ] || python3 -m venv target/operations
	target/operations/bin/pip install --quiet --disable-pip-version-check -r tests/operations/requirements.txt -c tests/operations/constraints.txt
	target/operations/bin/python tests/operations/operations.py target/debug/millstream

source-frames: ## Frames of odd cameras and HLS origins: what a viewer sees beside ffmpeg, ten minutes (CASES="S1 H2")
	$(CARGO) build --workspace --locked
	[ -x target/interop/bin/python ] || python3 -m venv target/interop
	target/interop/bin/pip install --quiet --disable-pip-version-check -r tests/interop/requirements.txt -c tests/interop/constraints.txt
	target/interop/bin/python tests/interop/source_frames.py target/debug/millstream $(CASES)

clients-test: ## OBS, FFmpeg, GStreamer, browsers and players against the gateway, also over loss (root; see docs/clients.md)
	$(CARGO) build --workspace --locked
	tests/clients/testbed.sh build $(TESTBED)
	cd tests/clients && npm ci --ignore-scripts --no-audit --no-fund --silent
	cd tests/browser && npm ci --ignore-scripts --no-audit --no-fund --silent
	CLIENT_WRAPPER="$(CURDIR)/tests/clients/testbed.sh run $(TESTBED)" GST_PLUGIN_PATH=/opt/gstplugins \
		python3 tests/clients/clients.py target/debug/millstream $(CLIENTS_TEST)

loss-curve: ## What loss does to a viewer in Chromium, as docs/loss-curve.csv and .svg: 35 minutes on an idle machine (root)
	@scripts/setup.sh run test
	$(CARGO) build --release --workspace --locked
	cd tests/browser && npm ci --ignore-scripts --no-audit --no-fund --silent
	python3 tests/clients/loss_curve.py target/release/millstream $(LOSS_SECONDS)

fuzz: ## Each fuzz target for ten minutes (FUZZ_SECONDS), all parsers of bytes from outside; see fuzz/README.md
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} scripts/fuzz.sh

fuzz-short: ## The same inputs each time, about 30 seconds per target: a failure is of the change and not of chance
	@FUZZ_SHORT=1 FUZZ_SECONDS=$${FUZZ_SECONDS:-600} scripts/fuzz.sh

bench: build ## Viewers per core against the floor of the same run (BENCH_ARGS="--viewers 200 --seconds 10")
	$(CARGO) run --release --locked -p millstream-bench -- $(BENCH_ARGS)

hls-start-bench: build ## How plain hls.js in Chromium starts on our LL-HLS: first frame, delay, errors (ARGS="--starts 20 --gop 2")
	@scripts/setup.sh test
	cd tests/browser && npm ci --ignore-scripts --no-audit --no-fund --silent
	$(CARGO) build --release --locked -p millstream-bench
	cd tests/browser && MILLSTREAM_BIN=target/release/millstream \
		MILLSTREAM_BENCH_BIN=../../target/release/millstream-bench node hls-start-bench.js $(ARGS)

callgrind: ## Instructions per packet that is forwarded to one viewer (needs valgrind; PROFILE=file keeps the profile)
	@PROFILE="$(PROFILE)" scripts/callgrind.sh

hostile: build ## A million mutated datagrams, hostile HTTP, TLS and media connections, and wrong tokens, while some watch
	$(CARGO) build --release --locked -p millstream-bench
	target/release/millstream-bench chaos hostile
	target/release/millstream-bench chaos addresses tls
	target/release/millstream-bench chaos addresses offers
	target/release/millstream-bench chaos addresses media-tcp --connections 2000 --rate 50
	target/release/millstream-bench chaos tokens

hls-beside: build ## What 300 LL-HLS players with tokens add to the delay of 20 WHEP viewers: at most 5 ms at p99
	$(CARGO) build --release --locked -p millstream-bench
	target/release/millstream-bench hls --viewers 300 --beside 20 --token --compare $(ARGS)

soak: build ## Publishers, cameras and viewers that come and go for SOAK_MINUTES (2 to try it, 30, 1440 for a day)
	$(CARGO) build --release --locked -p millstream-bench
	target/release/millstream-bench soak --minutes $${SOAK_MINUTES:-30} $(ARGS)

chaos: ## Each fault of docs/reliability.md, as a table of fault, promise and result (FAULTS="F5 F25" to pick some)
	$(CARGO) build --workspace --locked
	scripts/chaos.sh $(FAULTS)

mutants: ## Which changes of the code no test notices, by folder (FOLDERS="access session"; cargo-mutants; hours)
	scripts/mutants.sh $(FOLDERS)

mutants-sample: ## A sample of mutants of crates/core by folder, all in one build: minutes (ARGS="--per-folder 30 hub")
	scripts/mutants-sample.py $(ARGS)

deb: ## The Debian package: target/debian/millstream_*.deb
	@scripts/setup.sh run
	@scripts/deb.sh

deb-test: ## The same, installed in a bare Debian 12 and run there (needs root)
	@scripts/setup.sh run
	@scripts/deb.sh test

dist: ## What is released, in target/dist: tarball, Debian package, SBOM (CycloneDX) and checksums
	@scripts/setup.sh run
	@scripts/dist.sh

unit-security: ## How exposed the systemd unit leaves the gateway, against what docs/deployment.md says
	@scripts/unit-security.sh

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

pages-picture: ## docs/pages.png, made anew from the running program
	@scripts/setup.sh test
	$(CARGO) build --workspace --locked
	cd tests/browser && npm ci --ignore-scripts --no-audit --no-fund --silent
	scripts/pages-picture.mjs

clean: ## Remove everything that was built
	$(CARGO) clean
	rm -rf tests/browser/node_modules
