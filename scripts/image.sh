#!/usr/bin/env bash
# Builds the container image `millstream` with docker or podman. With `test`, runs it as deploy/compose.yaml does (no
# privileges, nothing to write to but /tmp), looks at what it answers, and publishes and watches with a browser.
#
# CONTAINER chooses the program; BUILD_OPTIONS and RUN_OPTIONS are further arguments for hosts that need some.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${CONTAINER:-}" ]; then
  for CONTAINER in docker podman none; do
    "$CONTAINER" info >/dev/null 2>&1 && break
  done
fi
if [ "$CONTAINER" = none ]; then
  echo "image: neither docker nor podman answers: install one, or start its service" >&2
  exit 1
fi
format=()
# Health checks are no part of the other format, which podman would choose, under whatever name.
! "$CONTAINER" --version | grep -qi podman || format=(--format docker)
# shellcheck disable=SC2086
"$CONTAINER" build "${format[@]}" ${BUILD_OPTIONS:-} -t millstream .
size=$("$CONTAINER" image inspect --format '{{.Size}}' millstream)
echo "image: built by $CONTAINER, $((size / 1000000)) MB"
[ "${1:-}" = test ] || exit 0

name=millstream-image-test-$$
port=$((20000 + RANDOM % 10000))
# shellcheck disable=SC2206
options=(--network host --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp
  -e "MILLSTREAM_HTTP__LISTEN=127.0.0.1:$port" -e "MILLSTREAM_WEBRTC__LISTEN=127.0.0.1:$((port + 10000))" ${RUN_OPTIONS:-})
trap '"$CONTAINER" rm -f "$name" >/dev/null 2>&1 || true' EXIT
"$CONTAINER" run -d --name "$name" "${options[@]}" millstream serve --demo >/dev/null
failed() {
  echo "image: FAILED: $1; its log:" >&2
  "$CONTAINER" logs "$name" >&2
  exit 1
}
playlist=
for _ in $(seq 100); do
  playlist=$(curl -fsS "http://127.0.0.1:$port/hls/demo/index.m3u8" 2>/dev/null) && break
  sleep 0.2
done
grep -q 'CODECS="avc1' <<<"$playlist" || failed "no test picture"
[ "$("$CONTAINER" exec "$name" id -u)" = 10001 ] || failed "it runs as another user"
"$CONTAINER" exec "$name" grep -q '^[^ ]* / [^ ]* ro,' /proc/mounts || failed "its files can be written to"
health=$("$CONTAINER" inspect --format '{{json .Config.Healthcheck.Test}}' "$name")
[ "$health" = '["CMD","millstream","health"]' ] || failed "no health check: $health"
[ "$("$CONTAINER" exec "$name" millstream health)" = well ] || failed "it is not well"
begun=$(date +%s)
"$CONTAINER" stop -t 35 "$name" >/dev/null
code=$("$CONTAINER" inspect --format '{{.State.ExitCode}}' "$name")
[ "$code" = 0 ] || failed "it ended with $code after SIGTERM"
"$CONTAINER" rm "$name" >/dev/null
echo "image: shows its test picture without privileges, is well, ends $(($(date +%s) - begun)) s after SIGTERM"

cd tests/browser
npm ci --ignore-scripts --no-audit --no-fund --silent
NEWCOMER="exec $CONTAINER run --rm --name $name ${options[*]} millstream" \
  node --test --test-reporter=spec --test-name-pattern='a laptop' newcomer.test.js
