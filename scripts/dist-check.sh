#!/usr/bin/env bash
# Unpacks a tarball of `make dist` and starts its gateway: it has to find its worker and show the test picture.
# dist-check.sh TARBALL
set -euo pipefail
folder=$(mktemp -d)
gateway=
finish() {
  [ -z "$gateway" ] || kill "$gateway" 2>/dev/null || true
  [ -z "$gateway" ] || wait "$gateway" 2>/dev/null || true
  rm -rf "$folder"
}
trap finish EXIT
tar -xzf "$1" -C "$folder" --strip-components=1
for file in share/doc/millstream.cdx.json share/doc/millstream-worker.cdx.json; do
  python3 - "$folder/$file" <<'PYTHON'
import json, sys
bom = json.load(open(sys.argv[1]))
assert bom["bomFormat"] == "CycloneDX" and len(bom["components"]) > 20, sys.argv[1]
PYTHON
done
for file in share/player share/pipelines/test.toml share/deploy/millstream.service share/doc/deployment.md LICENSE-MIT; do
  [ -e "$folder/$file" ] || { echo "dist: $file is missing" >&2; exit 1; }
done
port=$((20000 + RANDOM % 10000))
MILLSTREAM_HTTP__LISTEN="127.0.0.1:$port" MILLSTREAM_WEBRTC__LISTEN="127.0.0.1:$((port + 10000))" \
  "$folder/bin/millstream" serve --demo >"$folder/log" 2>&1 &
gateway=$!
for _ in $(seq 150); do
  playlist=$(curl -fsS "http://127.0.0.1:$port/hls/demo/index.m3u8" 2>/dev/null) && break
  sleep 0.2
done
if ! grep -q 'CODECS="avc1' <<<"${playlist:-}"; then
  echo "dist: FAILED: no test picture; its log:" >&2
  cat "$folder/log" >&2
  exit 1
fi
echo "dist: $(basename "$1") is complete, and its gateway shows the test picture"
