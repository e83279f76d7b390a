#!/usr/bin/env bash
# Checks how exposed the systemd unit leaves the gateway: the score of `systemd-analyze security` (0 is the best, 10 the
# worst) may not be worse than docs/deployment.md says. It needs systemd-analyze 250 or newer, and no running systemd.
set -euo pipefail
cd "$(dirname "$0")/.."

unit=deploy/millstream.service
documented=$(sed -n 's/.*exposure level of the unit is \([0-9]*\.[0-9]\).*/\1/p' docs/deployment.md)
if [ -z "$documented" ]; then
  echo "unit: docs/deployment.md does not say the exposure level of the unit" >&2
  exit 1
fi
report=$(systemd-analyze security --offline=true --no-pager "$unit")
score=$(sed -n 's/.*Overall exposure level for [^:]*: \([0-9]*\.[0-9]\).*/\1/p' <<<"$report")
if ! awk -v score="$score" -v most="$documented" 'BEGIN { exit !(score != "" && score + 0 <= most + 0) }'; then
  grep -v '✓' <<<"$report" >&2 || true
  echo "unit: the exposure level is $score, docs/deployment.md says $documented" >&2
  exit 1
fi
# What the score does not count.
for setting in LimitCORE=0 MemoryMax= TasksMax= OOMPolicy=continue; do
  if ! grep -q "^$setting" "$unit"; then
    echo "unit: $setting is missing" >&2
    exit 1
  fi
done
echo "unit: exposure level $score"
