#!/usr/bin/env bash
# Instructions per RTP packet that one viewer is sent, and bytes of state per viewer: crates/core/examples/forwarding.rs
# under callgrind. With `feedback` as argument the packets are numbered. Instructions do not depend on the load of the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind > /dev/null || { echo "valgrind is missing: apt-get install valgrind" >&2; exit 1; }
"${CARGO:-cargo}" build --release --locked -p millstream-core --example forwarding
program=${CARGO_TARGET_DIR:-target}/release/examples/forwarding
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
valgrind --tool=callgrind --callgrind-out-file="$out/profile" --collect-atstart=no --toggle-collect='forwarding::publish_and_forward_frames*' \
    "$program" "$@" > "$out/numbers" 2> "$out/log" || { cat "$out/log" >&2; exit 1; }
instructions=$(awk '/^(summary|totals):/ { print $2; exit }' "$out/profile")
awk -v instructions="$instructions" '
    { value[$1] = $2 }
    END {
        printf "viewers                  %d\n", value["viewers"]
        printf "RTP packets              %d\n", value["datagrams"]
        printf "instructions per packet  %.1f\n", instructions / value["datagrams"]
        printf "state per viewer         %d bytes\n", value["bytes_per_viewer"]
    }' "$out/numbers"
[ -z "${PROFILE:-}" ] || cp "$out/profile" "$PROFILE"
