#!/usr/bin/env bash
# Runs all browser tests: run.sh [OPTION OF NODE]...
# Two files at a time: each has browsers and gateways of its own, on free ports, and waits most of its time. What encodes
# and judges in real time how far behind a player is has the machine to itself.
set -uo pipefail
cd "$(dirname "$0")"

alone=(hls.test.js)
together=()
for file in *.test.js; do
  [[ " ${alone[*]} " == *" $file "* ]] || together+=("$file")
done

code=0
node --test --test-concurrency=2 --test-reporter=spec "$@" "${together[@]}" || code=$?
node --test --test-concurrency=1 --test-reporter=spec "$@" "${alone[@]}" || code=$?
exit "$code"
