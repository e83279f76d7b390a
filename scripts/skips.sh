#!/usr/bin/env bash
# Runs a command, shows its output, and fails if a test was skipped that tests/skips.txt does not list: skips.sh COMMAND...
#
# A test that does not run on this host prints `SKIPPED name: why`: `skipped` in tests/support, `skip` in
# tests/browser/harness.js. A test of Node.js that is skipped in another way is found by its line in the report.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
"$@" 2>&1 | tee "$log" || status=$?

# Names of skipped tests, each once. Two tests may print at the same time, so that the mark stands anywhere in a line.
mapfile -t skipped < <(
  {
    # The name ends at the first colon with a space behind it.
    sed -n 's/.*SKIPPED //p' "$log" | sed 's/: .*//'
    sed -nE 's/^ *﹣ (.*) \([0-9.]+ms\) # .*/\1/p' "$log"
  } | sort -u
)
unexpected=0
for name in "${skipped[@]}"; do
  if grep -qFx -- "$name" <(grep -v '^#' tests/skips.txt); then
    echo "skips: '$name' was skipped, as tests/skips.txt says it may be"
  else
    echo "skips: '$name' was SKIPPED, and tests/skips.txt does not list it" >&2
    unexpected=1
  fi
done
[ "$status" -eq 0 ] || exit "$status"
exit "$unexpected"
