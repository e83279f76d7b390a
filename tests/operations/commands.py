"""Commands of the documentation: every block marked `sh` is run against a gateway, or says in a comment above why not.

    <!-- not run: REASON -->          the block is not run
    <!-- runs until it is ended -->   it is ended as soon as it has printed something

Blocks of `make` alone are not run: CI runs these targets itself, or they take long. Their targets have to exist.
"""

import re
import select
import shlex
import subprocess

from gateway import API_TOKEN, DEFAULT_ADDRESS, PATIENCE, PROJECT, environment

PAGES = [
    *["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md"],
    *["fuzz/README.md", "player/npm/README.md", "tests/data/rtp/*.md"],
]
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n+)?```(?:sh|bash|shell|console)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
NOT_RUN = "not run: "
ENDLESS = "runs until it is ended"


def blocks():
    """Each block: its page and line, its mark, its text."""
    for pattern in PAGES:
        for path in sorted(PROJECT.glob(pattern)):
            page = path.read_text()
            for block in BLOCK.finditer(page):
                line = page.count("\n", 0, block.start("text"))
                yield f"{path.relative_to(PROJECT)}:{line}", block["mark"] or "", block["text"]


def make_targets(text):
    """The targets of a block that consists of `make` only; None for others."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not all(line.startswith("make ") for line in lines):
        return None
    words = [word for line in lines for word in shlex.split(line, comments=True)[1:]]
    return [word for word in words if "=" not in word]


def run(place, mark, text, gateway, folder):
    # Requests that fail are failures, as for whoever reads the page.
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", text.replace(DEFAULT_ADDRESS, gateway.address)],
        cwd=folder,
        env=environment(TOKEN=API_TOKEN, CURL_HOME=str(folder)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Its own group, so that all of it can be ended.
        start_new_session=True,
    )
    try:
        if mark == ENDLESS:
            ready, _, _ = select.select([shell.stdout], [], [], PATIENCE)
            printed = shell.stdout.read1() if ready else b""
            if not printed or shell.poll() is not None:
                raise SystemExit(f"{place}: the command ended or printed nothing: {printed.decode()}")
            return
        output, _ = shell.communicate(timeout=PATIENCE)
        if shell.returncode != 0:
            raise SystemExit(f"{place}: the commands ended with {shell.returncode}:\n{text}\n{output.decode()}")
    finally:
        if shell.poll() is None:
            subprocess.run(["kill", "--", f"-{shell.pid}"], check=False)
        shell.wait()


def check_commands(gateway, folder):
    known = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    count = {"run": 0, "not run": 0, "make": 0}
    for place, mark, text in blocks():
        if mark.startswith(NOT_RUN) and len(mark) > len(NOT_RUN):
            count["not run"] += 1
            continue
        assert mark in ("", ENDLESS), f"{place}: unknown mark: {mark}"
        targets = make_targets(text)
        if targets is not None:
            missing = [target for target in targets if target not in known]
            assert targets and not missing, f"{place}: no target of the Makefile: {missing}"
            count["make"] += 1
            continue
        run(place, mark, text, gateway, folder)
        count["run"] += 1
    assert count["run"] >= 4, f"hardly a command is run: {count}"
    print(f"documentation: {count['run']} blocks of commands run, {count['make']} name targets of the Makefile, "
          f"{count['not run']} are not run and say why")
