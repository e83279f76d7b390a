#!/usr/bin/env python3
"""A sample of mutants of crates/core, by folder, in minutes: all of them are compiled into one copy of the tree, each behind
a number, and MUTANT=NUMBER switches one on. `make mutants` builds each mutant instead, and knows more kinds.

Kinds: a condition is negated, a statement that calls or assigns is left out, a function returns a constant at once. A mutant
is caught when a unit test of the crate fails, or when the tests do not end; with --integration also those of `tests/core`.

Usage: mutants-sample.py [--per-folder N] [--seed N] [--integration] [FOLDER...]
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["media", "hub", "sdp", "session", "congestion"]
SWITCH = """//! Which mutant is on.

pub(crate) fn is_on(number: u32) -> bool {
    static ON: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let read = || std::env::var("MUTANT").ok().and_then(|number| number.parse().ok());
    *ON.get_or_init(|| read().unwrap_or(0)) == number
}

pub(crate) fn negated(number: u32, condition: bool) -> bool {
    condition != is_on(number)
}
"""
CONDITION = re.compile(r"^(\s*(?:\} else )?if )(?!let\b)((?:(?!\blet\b).)*)( \{)$")
STATEMENT = re.compile(r"^(\s+)((?:self|[a-z_]+)(?:\.[a-z_]+(?:\([^()]*\))?)*(?:\.[a-z_]+\(.*\)| [-+|]?= [^{]*);)$")
FUNCTION = re.compile(r"^\s*(?:pub(?:\([a-z]+\))? )?fn ([a-z_0-9]+)\(.*\) -> (\S.*) \{$")
CONSTANTS = {
    "bool": ["true", "false"],
    **{kind: ["0", "1"] for kind in ["usize", "u64", "u32", "u16", "u8", "i64", "i32"]},
    "Duration": ["std::time::Duration::ZERO"],
}


def mutants_of(path):
    """The mutants of a file: (line number, line with `{n}` for the mutant's number, description)."""
    found = []
    is_const = False
    for index, line in enumerate(path.read_text().split("\n")):
        if line.startswith("#[cfg(test)]"):
            break
        if re.match(r"^\s*(pub(\([a-z]+\))? )?(const fn|macro_rules!|const |static )", line):
            is_const = True
        if is_const:
            # Until the end of the item, by its indentation.
            if re.match(r"^ {0,4}\}", line) or line.endswith(";"):
                is_const = False
            continue
        text = line.replace("{", "{{").replace("}", "}}")
        if match := CONDITION.match(line):
            head, condition, end = (part.replace("{", "{{").replace("}", "}}") for part in match.groups())
            found.append((index, f"{head}crate::mutant_switch::negated({{n}}, {condition}){end}", f"negate `{match[2]}`"))
        elif match := STATEMENT.match(line):
            body = text.strip()
            found.append((index, f"{match[1]}if !crate::mutant_switch::is_on({{n}}) {{{{ {body} }}}}", f"leave out `{match[2]}`"))
        elif match := FUNCTION.match(line):
            name, kind = match.groups()
            constants = CONSTANTS.get(kind, ["None"] if kind.startswith("Option<") else [])
            for constant in constants:
                found.append((index, f"{text} if crate::mutant_switch::is_on({{n}}) {{{{ return {constant}; }}}}", f"`{name}` returns {constant}"))
    return found


def sample(folders, per_folder, seed):
    """Draws mutants: at most one for a line."""
    chosen = []
    for folder in folders:
        base = ROOT / "crates/core/src"
        files = sorted((base / folder).rglob("*.rs"))
        found = [
            (folder, file.relative_to(ROOT), *mutant)
            for file in files
            if file.stem not in ("tests", "test_support")
            for mutant in mutants_of(file)
        ]
        random.Random(f"{seed} {folder}").shuffle(found)
        lines = set()
        drawn = []
        for mutant in found:
            if len(drawn) < per_folder and mutant[1:3] not in lines:
                lines.add(mutant[1:3])
                drawn.append(mutant)
        print(f"{folder}: {len(drawn)} of {len(found)} mutants drawn", flush=True)
        chosen += drawn
    return dict(enumerate(chosen, 1))


def write_tree(tree, mutants):
    """Copies what git knows, and writes the mutants into it."""
    names = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).split("\n")
    for name in filter(None, names):
        source, target = ROOT / name, tree / name
        if not source.is_file():
            continue
        text = source.read_bytes()
        if name == "crates/core/src/lib.rs":
            text += b"\npub(crate) mod mutant_switch;\n"
        lines = None
        for number, (_, file, index, line, _) in mutants.items():
            if str(file) == name:
                lines = lines or text.decode().split("\n")
                lines[index] = line.format(n=number)
        text = "\n".join(lines).encode() if lines else text
        # What is the same keeps its time, so that it is not built again.
        if not target.exists() or target.read_bytes() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
            shutil.copymode(source, target)
    (tree / "crates/core/src/mutant_switch.rs").write_text(SWITCH)


def build(tree, mutants, arguments):
    """Builds tests; takes mutants out that do not compile. Returns the program."""
    command = [os.environ.get("CARGO", "cargo"), "test", "--locked", "--no-run", "--message-format=json", *arguments]
    environment = {**os.environ, "RUSTFLAGS": os.environ.get("RUSTFLAGS", "")}
    environment.setdefault("CARGO_TARGET_DIR", str(ROOT / "target"))
    if not environment["RUSTFLAGS"]:
        del environment["RUSTFLAGS"]
    for _ in range(8):
        write_tree(tree, mutants)
        run = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)
        messages = [json.loads(line) for line in run.stdout.split("\n") if line.startswith("{")]
        if run.returncode == 0:
            programs = [message["executable"] for message in messages if message.get("executable")]
            return programs[-1]
        errors = [message["message"] for message in messages if message["reason"] == "compiler-message"]
        wrong = {
            (span["file_name"], span["line_start"] - 1)
            for error in errors
            if error["level"] == "error"
            for span in error["spans"]
        }
        gone = [n for n, (_, file, index, *_) in mutants.items() if (str(file), index) in wrong]
        for number in gone:
            print(f"does not compile: {mutants[number][1]}:{mutants[number][2] + 1}: {mutants[number][4]}", flush=True)
            del mutants[number]
        if not gone:
            sys.exit("the tree does not build:\n" + "\n".join(error["rendered"] for error in errors[:5]))
    sys.exit("too many mutants do not compile")


def passes(program, folder, number, limit):
    """Whether the tests pass with a mutant switched on."""
    try:
        return subprocess.run(
            [program, "-q", *folder],
            cwd=ROOT / "crates/core",
            env={**os.environ, "MUTANT": str(number)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=limit,
            preexec_fn=lambda: os.nice(19),
        ).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("folders", nargs="*", default=FOLDERS)
    arguments.add_argument("--per-folder", type=int, default=30)
    arguments.add_argument("--seed", default="1")
    arguments.add_argument("--integration", action="store_true")
    arguments.add_argument("--minutes", type=float, default=35, help="mutants beyond this time are not tried")
    options = arguments.parse_args()
    deadline = time.monotonic() + options.minutes * 60
    mutants = sample(options.folders, options.per_folder, options.seed)
    tree = ROOT / "target/mutants-sample"
    stages = [build(tree, mutants, ["-p", "millstream-core", "--lib"])]
    if options.integration:
        stages.append(build(tree, mutants, ["--workspace", "--test", "core"]))
    limits = []
    for program in stages:
        began = time.monotonic()
        if not passes(program, [], 0, 1_200):
            sys.exit(f"{program} fails without a mutant")
        limits.append(max(60, 5 * (time.monotonic() - began)))
    survived, tried = {}, {}
    # One of each folder in turn: whatever is left out at the deadline is left out of all.
    order = sorted(mutants, key=lambda n: (list(mutants).index(n) - min(m for m in mutants if mutants[m][0] == mutants[n][0])))
    for number in order:
        if time.monotonic() > deadline:
            break
        folder, file, index, _, what = mutants[number]
        tried[folder] = tried.get(folder, 0) + 1
        # The tests of its own folder first: most mutants end there.
        is_caught = not passes(stages[0], [f"{folder}::"], number, limits[0])
        is_caught = is_caught or any(not passes(program, [], number, limit) for program, limit in zip(stages, limits))
        if not is_caught:
            survived.setdefault(folder, []).append(f"{file}:{index + 1}: {what}")
            print(f"survived: {file}:{index + 1}: {what}", flush=True)
    for folder, count in tried.items():
        left = len(survived.get(folder, []))
        print(f"{folder}: {count - left} of {count} mutants caught ({100 * (count - left) // count} %)")


main()
