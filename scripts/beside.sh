#!/usr/bin/env bash
# Runs two commands at the same time, the first with only those processors that the second leaves idle:
# beside.sh LOG OTHER_COMMAND... -- COMMAND...
#
# The other one writes to LOG. When the command ends, the other one gets the whole machine, and its output follows. The exit
# code is that of the command, or, where that is 0, of the other one. If the command fails, the other one is ended.
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

for process in $(pgrep -g "$pid" 2>/dev/null); do
  chrt --all-tasks --other --pid 0 "$process" >/dev/null 2>&1 || true
  renice -n 0 -p "$process" >/dev/null 2>&1 || true
done
printf '\nbeside: %s\n' "${other[*]}"
tail -n +1 --pid="$pid" -f "$log" &
reader=$!
status=0
wait "$pid" || status=$?
wait "$reader"
trap - EXIT
exit "$status"
