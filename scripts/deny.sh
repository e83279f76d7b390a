#!/usr/bin/env bash
# Checks all dependencies, direct or not, against deny.toml. Advisories need their database from the network: where it cannot be
# reached they are left out, and that is said. With ADVISORIES=warn one that is found is printed and no failure: an advisory of today
# says nothing about a change. Installs cargo-deny and no more: deny.sh --install
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/cargo-tool.sh deny 0.20.2
if [ "${1:-}" = --install ]; then
  exit
fi

# The fuzz targets are a workspace of their own, with the versions of the gateway (see fuzz.sh), not with the newest of today.
cp Cargo.lock fuzz/Cargo.lock
for manifest in Cargo.toml fuzz/Cargo.toml; do
  cargo deny --manifest-path "$manifest" --workspace --all-features check --hide-inclusion-graph bans licenses sources
done
if timeout 60 cargo deny fetch db >/dev/null 2>&1; then
  for manifest in Cargo.toml fuzz/Cargo.toml; do
    cargo deny --manifest-path "$manifest" --workspace --all-features check advisories || [ "${ADVISORIES:-deny}" = warn ]
  done
else
  echo "deny: advisories NOT checked: their database cannot be reached from here"
fi
