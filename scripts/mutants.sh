#!/usr/bin/env bash
# Mutation score by folder: which changes of the code no test notices. Each mutant is built and judged by the unit tests of
# its package. One at a time, in this tree: a build takes all cores.
# Usage: scripts/mutants.sh [session|guard|access|sdp|limits ...]; MUTANTS_ARGS="--shard 1/20" runs a part.
set -uo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
"$cargo" mutants --version > /dev/null 2>&1 || "$cargo" install --locked cargo-mutants || exit 1
out=${CARGO_TARGET_DIR:-target}/mutants
mkdir -p "$out"
missed=0

# The package and the files of a folder.
plan() {
    case $1 in
        session) echo "millstream-core crates/core/src/session/**/*.rs" ;;
        guard) echo "millstream-core crates/core/src/session/dtls_filter.rs" ;;
        sdp) echo "millstream-core crates/core/src/sdp/**/*.rs" ;;
        access) echo "millstream src/access/**/*.rs" ;;
        limits) echo "millstream src/http/limits.rs" ;;
        *) return 1 ;;
    esac
}

for folder in "${@:-session guard sdp access limits}"; do
    for name in $folder; do
        read -r package files <<< "$(plan "$name")" || { echo "unknown folder: $name" >&2; exit 2; }
        # shellcheck disable=SC2086 # several arguments
        "$cargo" mutants --in-place --no-shuffle --jobs 1 --package "$package" --file "$files" --output "$out/$name" \
            --baseline skip --timeout 300 ${MUTANTS_ARGS:-} -- --locked --lib > "$out/$name.log" 2>&1
        found=$out/$name/mutants.out
        caught=$(wc -l < "$found/caught.txt") survived=$(wc -l < "$found/missed.txt")
        hung=$(wc -l < "$found/timeout.txt")
        all=$((caught + survived + hung))
        echo "$name: $((caught + hung)) of $all mutants noticed ($((all ? 100 * (caught + hung) / all : 0)) %), $survived survived"
        sed 's/^/  survived: /' "$found/missed.txt"
        ((survived == 0)) || missed=1
    done
done
exit "$missed"
