#!/usr/bin/env bash
# Checks the dependencies against deny.toml. Advisories need their database from the network: where it cannot be
# reached they are left out, and that is said.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/cargo-tool.sh deny 0.20.2

cargo deny --workspace --all-features check --hide-inclusion-graph bans licenses sources
if timeout 60 cargo deny fetch db >/dev/null 2>&1; then
  cargo deny --workspace --all-features check advisories
else
  echo "deny: advisories NOT checked: their database cannot be reached from here"
fi
