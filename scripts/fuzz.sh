#!/usr/bin/env bash
# Builds the fuzz targets and runs each for FUZZ_SECONDS: fuzz.sh [TARGET...]
# Builds them and no more: fuzz.sh --build
#
# FUZZ_SECONDS   seconds per target (30)
# FUZZ_SHORT=1   each target for a fixed number of inputs, from a fixed seed and an empty corpus, without random keys of maps
#                and random addresses, both of which coverage sees: the same inputs each time, unless FUZZ_SECONDS end before.
#                An input may take two minutes instead of 20 s: this form runs on what processors others leave idle
# FUZZ_JOBS      targets at the same time (the number of cores, at most 4)
# FUZZ_SANITIZER none (the default) or one of cargo-fuzz, such as address; those need a nightly compiler
#
# The corpus of a target grows in target/fuzz-corpus/TARGET from run to run, but for the short form; it begins with the
# inputs of fuzz/seeds.py.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-30}
export FUZZ_SHORT=${FUZZ_SHORT:-0}
jobs=${FUZZ_JOBS:-$(( $(nproc) < 4 ? $(nproc) : 4 ))}
# No sanitizer: the gateway has no unsafe code outside of system calls, which no target reaches. AddressSanitizer would
# look at dependencies only.
sanitizer=${FUZZ_SANITIZER:-none}
version=0.13.2

# Longest input of each target in bytes: enough for what a peer sends at a time.
declare -A max_len=(
  [config]=4096 [datagram]=4096 [depacketizer]=8192 [fragment]=2048 [framing]=16384 [mp4]=8192 [mpegts]=16384
  [offer]=8192 [playlist]=4096 [rtcp]=1500 [rtp]=8192 [sctp]=4096
)

# Inputs of the short form: somewhat fewer than what two cores do in 30 seconds.
declare -A short_runs=(
  [config]=20000 [datagram]=250000 [depacketizer]=1000000 [fragment]=2500000 [framing]=70000 [mp4]=1000000 [mpegts]=450000
  [offer]=40000 [playlist]=2000000 [rtcp]=1500000 [rtp]=100000 [sctp]=100000
)

say() { printf 'fuzz: %s\n' "$*"; }

say_and_stop() {
  say "$*" >&2
  exit 1
}

only_build=0
if [ "${1:-}" = --build ]; then
  only_build=1
  shift
fi
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/^name = "\(.*\)"$/\1/p' fuzz/Cargo.toml | grep -vx millstream-fuzz)
for target in "${targets[@]}"; do
  [ -n "${max_len[$target]:-}" ] && [ -n "${short_runs[$target]:-}" ] || say_and_stop "no target '$target' with a length; there are: ${!max_len[*]}"
done

export PATH="$PWD/target/tools/bin:$PATH"
if [ "$(cargo fuzz --version 2>/dev/null)" != "cargo-fuzz $version" ]; then
  say "installing cargo-fuzz $version into target/tools (built from source, once)"
  cargo install cargo-fuzz --version "$version" --locked --quiet --root target/tools
fi

# Instrumentation needs no nightly compiler, sanitizers do.
nightly=$(rustup toolchain list 2>/dev/null | grep -om 1 '^nightly[^ ]*' || true)
if [ -n "$nightly" ]; then
  export RUSTUP_TOOLCHAIN=$nightly
else
  export RUSTC_BOOTSTRAP=1
fi
say "building ${#targets[@]} targets by $(rustc --version), sanitizer $sanitizer"
# Dependencies have the versions of the gateway; cargo adds the fuzzer, whose version Cargo.toml pins.
cp Cargo.lock fuzz/Cargo.lock
host=$(rustc -vV | sed -n 's/^host: //p')
begun=$SECONDS
cargo fuzz build --sanitizer "$sanitizer" --codegen-units 16 --target "$host" --target-dir target/fuzz
say "built in $((SECONDS - begun)) s"
[ "$only_build" = 0 ] || exit 0
python3 fuzz/seeds.py target/fuzz-seeds

# Makes the short form repeatable: words that go before the command of a target.
repeatable=()
if [ "$FUZZ_SHORT" = 1 ]; then
  cc -shared -fPIC -O1 -o target/fuzz/fixed_random.so fuzz/fixed_random.c
  repeatable=(env "LD_PRELOAD=$PWD/target/fuzz/fixed_random.so")
  if setarch -R true 2>/dev/null; then
    repeatable=(setarch -R "${repeatable[@]}")
  else
    say "addresses stay random here (setarch -R is refused): inputs differ a little from run to run"
  fi
fi
export REPEATABLE="${repeatable[*]}"

# Runs one target; its last line of output is the summary.
run() {
  local target=$1 binary=target/fuzz/$2/release/$1 log=target/fuzz-logs/$1.log crashes=target/fuzz-crashes/$1/
  local corpus=target/fuzz-corpus/$target amount=() timeout=20
  if [ "$FUZZ_SHORT" = 1 ]; then
    corpus=target/fuzz-corpus-short/$target amount=(-seed=1 -runs="$5" -reload=0) timeout=1200
    rm -rf "$corpus"
  fi
  mkdir -p "$corpus" "$crashes" target/fuzz-logs
  local repeatable
  read -ra repeatable <<<"$REPEATABLE"
  local options=(-max_len="$3" -rss_limit_mb=1024 -timeout="$timeout" -artifact_prefix="$crashes" -report_slow_units=60
    -print_final_stats=1)
  local status=0
  "${repeatable[@]}" "$binary" "${options[@]}" "${amount[@]}" -max_total_time="$4" "$corpus" "target/fuzz-seeds/$target" >"$log" 2>&1 \
    || status=$?
  awk -v target="$target" '
    / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:" || $i == "ft:" || $i == "corp:") found[$i] = $(i + 1) }
    /^stat::number_of_executed_units/ { runs = $2 }
    /^stat::average_exec_per_sec/ { rate = $2 }
    /^stat::peak_rss_mb/ { rss = $2 }
    END { printf "%-13s %9d executions %6d/s %6d edges %6d features %9s inputs %5d MiB\n",
          target, runs, rate, found["cov:"], found["ft:"], found["corp:"], rss }' "$log"
  if [ "$status" -ne 0 ]; then
    local artifact
    artifact=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    {
      tail -n 40 "$log"
      echo "fuzz: $target FAILED (its whole output is in $log). Once more:"
      echo "  $binary ${options[*]:0:3} ${artifact:-$corpus -runs=0}"
      [ -z "$artifact" ] || echo "Smaller: $binary -minimize_crash=1 -max_total_time=60 $artifact"
    } >&2
    return 1
  fi
}
export -f run

say "each target for $([ "$FUZZ_SHORT" = 1 ] && echo "a fixed number of inputs and at most ")$seconds s, $jobs at a time"
begun=$SECONDS
failed=0
for target in "${targets[@]}"; do
  printf '%s\0%s\0%s\0%s\0%s\0' "$target" "$host" "${max_len[$target]}" "$seconds" "${short_runs[$target]}"
done | xargs -0 -n 5 -P "$jobs" bash -c 'set -euo pipefail; run "$@"' fuzz || failed=1
say "ran for $((SECONDS - begun)) s"
exit "$failed"
