#!/usr/bin/env bash
# Runs a command, and beside it another one that gets only what processors the first leaves idle:
# beside.sh LOG OTHER_COMMAND... -- COMMAND...
#
# Its exit code is that of the command. The other one writes to LOG and is ended when the command ends; whether it failed
# shows when the command needs what it makes.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$1
shift
other=()
while [ "$1" != -- ]; do
  other+=("$1")
  shift
done
shift

idle=(nice -n 19)
if chrt --idle 0 true 2>/dev/null; then
  idle=(chrt --idle 0)
fi
mkdir -p "$(dirname "$log")"
# A process group of its own, so that all of it can be ended.
set -m
"${idle[@]}" "${other[@]}" >"$log" 2>&1 </dev/null &
set +m
pid=$!
trap 'kill -- "-$pid" 2>/dev/null || true' EXIT
"$@"
