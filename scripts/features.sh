#!/usr/bin/env bash
# Checks the gateway without its features and with each alone, and the minimum Rust versions of the dependencies.
# Compiles the workspace with the minimum Rust version of Cargo.toml, and no more: features.sh --minimum-rust
#
# The features come from `cargo metadata`: a new one needs no line here.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'features: %s\n' "$*"; }

compile_with_minimum_rust() {
  local minimum toolchain
  minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  toolchain=$(rustup toolchain list 2>/dev/null | grep -om 1 "^${minimum//./\\.}[.-][^ ]*" || true)
  if [ -n "$toolchain" ]; then
    say "compiling with Rust $minimum ($toolchain)"
    # Artifacts of another compiler stay apart, or each would discard those of the other.
    RUSTUP_TOOLCHAIN=$toolchain cargo check --workspace --all-features --locked --quiet --target-dir target/minimum-rust
  else
    echo "SKIPPED minimum Rust version: no toolchain $minimum (rustup toolchain install $minimum)"
  fi
}

if [ "${1:-}" = --minimum-rust ]; then
  compile_with_minimum_rust
  exit
fi

# Lines of `PACKAGE FEATURE`; the feature is `-` for none at all.
matrix() {
  cargo metadata --locked --no-deps --format-version 1 | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    features = sorted(name for name in package["features"] if name != "default")
    for feature in ["-"] * bool(features) + features:
        print(package["name"], feature)'
}

# Clippy is `cargo check` and more: an import that only one feature needs is an error without it.
while read -r package feature; do
  options=(--package "$package" --no-default-features)
  [ "$feature" = - ] || options+=(--features "$feature")
  say "${options[*]}"
  cargo clippy --locked --quiet "${options[@]}" -- -D warnings </dev/null
done < <(matrix)

# Every dependency says which Rust it needs, or works with any.
cargo metadata --locked --all-features --format-version 1 --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" |
  python3 -c '
import json, sys
metadata = json.load(sys.stdin)
used = {node["id"] for node in metadata["resolve"]["nodes"]}
version = lambda text: tuple(int(part) for part in text.split("-")[0].split(".") + ["0"] * (2 - text.count(".")))
packages = [package for package in metadata["packages"] if package["id"] in used]
ours = max(package["rust_version"] for package in packages if package["source"] is None and package["rust_version"])
newer = [package for package in packages if package["rust_version"] and version(package["rust_version"]) > version(ours)]
for package in newer:
    print("features: {name} {version} needs Rust {rust_version}".format(**package), file=sys.stderr)
unknown = sum(package["rust_version"] is None for package in packages)
print(f"features: {len(packages)} packages, {len(newer)} of them need a newer Rust than {ours}; {unknown} do not say")
sys.exit(bool(newer))'
