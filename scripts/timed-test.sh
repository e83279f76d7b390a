#!/usr/bin/env bash
# Runs one test binary with the time of each test, as cargo's runner: timed-test.sh BINARY ARGUMENT...
# The option is unstable: the variable makes the harness of a stable toolchain take it, and nothing is compiled by it.
RUSTC_BOOTSTRAP=1 exec "$@" -Z unstable-options --report-time
