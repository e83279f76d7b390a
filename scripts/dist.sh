#!/usr/bin/env bash
# Makes what is released, in target/dist: the Debian package, a tarball of the programs with player, pipelines, unit file,
# configuration and docs, a list of all that is built into them (SBOM, CycloneDX), and checksums.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/cargo-tool.sh cyclonedx 0.5.9
version=$(cargo metadata --locked --no-deps --format-version 1 |
  python3 -c 'import json, sys; print(next(p["version"] for p in json.load(sys.stdin)["packages"] if p["name"] == "millstream"))')
name=millstream-$version-$(uname -m)-linux
out=$PWD/target/dist
rm -rf "$out" && mkdir -p "$out/$name"/{bin,libexec/millstream,share/pipelines,share/player,share/deploy,share/doc}

scripts/deb.sh
cp target/debian/*.deb "$out/"

# One list per program, of what it is built from on this platform. They are written beside each Cargo.toml.
target=$(rustc -vV | sed -n 's/^host: //p')
cargo cyclonedx --format json --target "$target" --override-filename sbom.cdx --quiet
mv sbom.cdx.json "$out/$name/share/doc/millstream.cdx.json"
mv crates/worker/sbom.cdx.json "$out/$name/share/doc/millstream-worker.cdx.json"
find . -name sbom.cdx.json -not -path './target/*' -delete

cp target/release/millstream "$out/$name/bin/"
cp target/release/millstream-worker "$out/$name/libexec/millstream/"
cp pipelines/*.toml "$out/$name/share/pipelines/"
git archive HEAD player | tar -x -C "$out/$name/share/player" --strip-components=1
cp deploy/millstream.service deploy/millstream.toml deploy/prometheus.yml deploy/grafana-dashboard.json "$out/$name/share/deploy/"
cp README.md CHANGELOG.md SECURITY.md LICENSE-* "$out/$name/"
cp docs/*.md "$out/$name/share/doc/"
cp "$out/$name"/share/doc/*.cdx.json "$out/"

# The same files make the same archive, whenever it is packed.
tar -C "$out" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" \
  -cf - "$name" | gzip -n9 >"$out/$name.tar.gz"
rm -rf "${out:?}/$name"
(cd "$out" && sha256sum -- * >SHA256SUMS)

# What is in it, as somebody would who unpacks it.
"$PWD/scripts/dist-check.sh" "$out/$name.tar.gz"
