#!/usr/bin/env bash
# Runs the faults of tests/chaos/faults.txt (all, or those named), prints a table of them in Markdown, and writes it into
# docs/reliability.md if all were run. A line of a test's output that begins with `measured:` is its measured value.
set -uo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
log=$(mktemp -d)
table=$log/table
failed=0
# The last lines of a test that fails say why.
export RUST_BACKTRACE=0
trap 'rm -rf "$log"' EXIT

# The tests are built once, and their programs are kept: the tree may change while they run.
target=${CARGO_TARGET_DIR:-target}
programs=$log/programs
mkdir "$programs"
build() {
    "$cargo" test --workspace --locked --no-run --message-format=json --lib --test core --test server --test sources |
        python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line) if line.startswith("{") else {}
    if message.get("executable") and message["profile"]["test"]:
        target = message["target"]
        print("lib" if "lib" in target["kind"] else "test", target["name"].replace("_", "-"), message["executable"])
' > "$log/built" || return 1
    while read -r kind name program; do
        cp "$program" "$programs/$kind-$name"
    done < "$log/built"
}

run() {
    local kind=$1 first rest
    shift
    first=$1 rest=${*:2}
    case $kind in
        test) "$programs/test-$first" --exact --nocapture "$rest" ;;
        lib) (cd "crates/${first#millstream-}" && "$programs/lib-$first" --nocapture "$rest") ;;
        # shellcheck disable=SC2086 # several arguments
        bench) "$target/debug/millstream-bench" "$first" --gateway "$target/debug/millstream" $rest ;;
        # Only the file that has the test: the others start browsers of their own.
        browser) (cd tests/browser && npm ci --ignore-scripts --no-audit --no-fund --silent &&
            node --test --test-reporter=spec --test-name-pattern="$*" "$(grep -l "$*" ./*.test.js)") ;;
    esac
}

build && "$cargo" build --workspace --locked || exit 1
printf '| | fault | promise | result | command |\n|---|---|---|---|---|\n' > "$table"
while IFS='|' read -r number fault promise how; do
    number=${number// /}
    [[ $number =~ ^F ]] || continue
    if (($# > 0)) && [[ " $* " != *" $number "* ]]; then continue; fi
    read -r kind rest <<< "$how"
    if [[ $kind == none ]]; then
        result="not covered: $rest" command=
    else
        command="\`$kind $rest\`"
        # shellcheck disable=SC2086 # words of the table
        if run "$kind" $rest > "$log/out" 2>&1 < /dev/null && ! grep -q '^test result: ok. 0 passed' "$log/out"; then
            measured=$(sed -nE 's/^(test .* \.\.\. |ℹ )?measured: //p; /as before the load: |^RSS after/p' "$log/out" | paste -sd $'\001' | sed 's/\x01/; /g')
            result="held${measured:+: $measured}"
            # A test that lacks a program or a right skips, which shows nothing.
            skipped=$(sed -n 's/^SKIPPED [^:]*: //p' "$log/out" | sort -u | paste -sd ';')
            [[ -z $skipped ]] || result="not run here: $skipped"
        else
            result=FAILED failed=1
            tail -n 20 "$log/out" >&2
        fi
    fi
    printf '| %s |%s|%s| %s | %s |\n' "$number" "$fault" "$promise" "$result" "$command" | tee -a "$table"
done < tests/chaos/faults.txt

if (($# == 0)); then
    awk -v table="$table" '
        /^<!-- faults end -->/ { skipping = 0 }
        !skipping { print }
        /^<!-- faults begin -->/ { skipping = 1; while ((getline line < table) > 0) print line }
    ' docs/reliability.md > "$log/page" && cat "$log/page" > docs/reliability.md
fi
exit "$failed"
