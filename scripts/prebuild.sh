#!/usr/bin/env bash
# Builds, in folders of their own, what later steps of `make test` need: run beside the first steps, by scripts/beside.sh.
# What fails here fails again, and is seen, in its own step.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/deny.sh --install || true
scripts/fuzz.sh --build || true
scripts/features.sh --minimum-rust || true
