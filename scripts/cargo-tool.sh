#!/usr/bin/env bash
# Installs a tool of cargo, if it is missing: cargo-tool.sh NAME VERSION
set -euo pipefail
if ! cargo "$1" --version >/dev/null 2>&1; then
  echo "$1: installing cargo-$1 $2 (built from source, once)"
  cargo install "cargo-$1" --version "$2" --locked --quiet
fi
