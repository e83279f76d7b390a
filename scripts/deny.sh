#!/usr/bin/env bash
# Checks all dependencies, direct or not, against deny.toml. Advisories need their database from the network: where it cannot be
# reached they are left out, and that is said. Installs cargo-deny and no more: deny.sh --install
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/cargo-tool.sh deny 0.20.2
if [ "${1:-}" = --install ]; then
  exit
fi

# The fuzz targets are a workspace of their own.
for manifest in Cargo.toml fuzz/Cargo.toml; do
  cargo deny --manifest-path "$manifest" --workspace --all-features check --hide-inclusion-graph bans licenses sources
done
if timeout 60 cargo deny fetch db >/dev/null 2>&1; then
  for manifest in Cargo.toml fuzz/Cargo.toml; do
    cargo deny --manifest-path "$manifest" --workspace --all-features check advisories
  done
else
  echo "deny: advisories NOT checked: their database cannot be reached from here"
fi
