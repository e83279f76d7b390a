#!/usr/bin/env bash
# Runs a command that tests and prints its slowest tests after its output, and again what failed: slowest.sh COMMAND...
# Its exit code is that of the command. Read are the lines of Rust's test harness with times, and node's `spec` reporter.
set -uo pipefail

log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$@" | tee "$log"
code=${PIPESTATUS[0]}

printf '\nslowest tests, in seconds:\n'
{
  sed -nE 's/^test (.+) \.\.\. .*<([0-9.]+)s>$/\2 \1/p' "$log"
  sed -nE 's/^ *(✔|✖) (.+) \(([0-9.]+)ms\).*$/\3 \2/p' "$log" | awk '{ $1 /= 1000; print }'
} | sort -rnu | head -n 15 | awk '{ printf "%7.1f ", $1; $1 = ""; print substr($0, 2) }'

# Where only the end of a long log is kept, it says what to look at.
if [ "$code" -ne 0 ]; then
  printf '\nwhat failed:\n'
  # Of a reporter's list of failures each one with its first lines, of a panic its message.
  awk '/^✖ failing tests:/ { list = 1; next }
    list && /^✖ / { left = 20 }
    !list && /panicked at / { left = 12 }
    left > 0 { print; left -= 1 }' "$log" | cut -c 1-300 | head -n 120
fi
exit "$code"
