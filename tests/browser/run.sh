#!/usr/bin/env bash
# Runs all browser tests: run.sh [OPTION OF NODE]...
# Two files at a time where each waits most of its time: they have browsers and gateways of their own, on free ports. Files
# whose streams are encoded here, or that judge in real time how far behind a player is, have the machine to
# themselves; so have those that add addresses to it, because a browser that sees an address come aborts what it loads.
set -uo pipefail
cd "$(dirname "$0")"

alone=(absence audience camera codec connectivity dashboard hls hls-start instant layers limited media network newcomer quality restart talk)
alone=("${alone[@]/%/.test.js}")
together=()
for file in *.test.js; do
  [[ " ${alone[*]} " == *" $file "* ]] || together+=("$file")
done

code=0
node --test --test-concurrency=2 --test-reporter=spec "$@" "${together[@]}" || code=$?
node --test --test-concurrency=1 --test-reporter=spec "$@" "${alone[@]}" || code=$?
exit "$code"
