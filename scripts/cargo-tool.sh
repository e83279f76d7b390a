#!/usr/bin/env bash
# Installs a tool of cargo, if it is missing: cargo-tool.sh NAME VERSION
set -euo pipefail
if ! cargo "$1" --version >/dev/null 2>&1; then
  echo "$1: installing cargo-$1 $2 (built from source, once)"
  # It runs for seconds: building it takes 96 s of processor time without optimization, and 252 s with it (cargo-deny 0.20.2).
  export CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
  cargo install "cargo-$1" --version "$2" --locked --quiet
fi
