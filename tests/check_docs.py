"""Runs what the README shows, and checks every link of the documentation.

Blocks marked `bash` run in order, in one shell, in a copy of the tracked files, against a Sundog that
is started for them; a block below a line `<!-- not run: why -->` is skipped, and so is every other
language. A block below `<!-- file: NAME -->` is written to that file first. A failing block is shown
with its output.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
_FENCE = re.compile(
    r"(?:<!-- (?P<mark>not run|file): (?P<about>[^\n]*) -->\n+)?^```(?P<lang>[^\n]*)\n(?P<body>.*?)^```$",
    re.M | re.S,
)
_LINK = re.compile(r"\[[^\]]*\]\((?P<to>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    line: int
    skipped: bool
    file: str


def blocks(text: str) -> list[Block]:
    return [
        Block(
            language=m["lang"].strip(),
            body=m["body"],
            line=text[: m.start("lang")].count("\n") + 1,
            skipped=m["mark"] == "not run",
            file=m["about"] if m["mark"] == "file" else "",
        )
        for m in _FENCE.finditer(text)
    ]


def broken_links(root: Path) -> list[str]:
    """`file:line: target` of each relative link that leads nowhere, anchors included."""
    faults = []
    for file in tracked(root, "*.md"):
        text = (root / file).read_text()
        for match in _LINK.finditer(
            re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
        ):
            target = match["to"]
            if "://" in target or target.startswith("mailto:"):
                continue
            path, _, anchor = target.partition("#")
            goal = (root / file).parent / path if path else root / file
            where = f"{file}:{text[: match.start()].count(chr(10)) + 1}"
            if not goal.exists():
                faults.append(f"{where}: {target}: there is no such file")
            elif anchor and goal.suffix == ".md" and anchor not in anchors(goal.read_text()):
                faults.append(f"{where}: {target}: no such heading")
    return faults


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+\s+(.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).strip().replace(" ", "-") for t in titles}


def tracked(root: Path, pattern: str = "") -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"] + (
        [pattern] if pattern else []
    )
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()


def copy_of(root: Path) -> Path:
    """The tracked files in a folder of their own, so that a block cannot change the checkout."""
    folder = Path(tempfile.mkdtemp(prefix="sundog-readme-"))
    for name in tracked(root):
        source, target = root / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return folder


def run_blocks(text: str, folder: Path) -> list[str]:
    """Faults of the blocks that failed, in one shell so that a variable set in one lives in the next."""
    script = ["set -eo pipefail"]
    for block in blocks(text):
        if block.skipped:
            continue
        if block.file:
            target = folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.body)
        elif block.language == "bash":
            script += [f"echo '== README.md:{block.line}' >&2", block.body]
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(folder / "home"),
        "SUNDOG_HOME": str(folder / ".sundog"), "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    for name in (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_DASHBOARD_ADDRESS",
        "SUNDOG_ROOT",
        "SUNDOG_GATEWAY",
    ):
        environment.pop(name, None)
    (folder / "home").mkdir()
    up = start_sundog(folder, environment)
    try:
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)], cwd=folder, env=environment, capture_output=True,
            text=True, timeout=900, check=False,
        )  # fmt: skip
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(timeout=60)
    if done.returncode == 0:
        return []
    last = re.findall(r"^== (README\.md:\d+)$", done.stderr, re.M)[-1:]
    tail = "\n".join((done.stdout + "\n" + done.stderr).strip().splitlines()[-40:])
    return [f"{last[0] if last else 'README.md'}: the block ended with {done.returncode}\n{tail}"]


def start_sundog(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    from sundog.rayapi.local import free_ports

    log = (folder / "up.log").open("wb")
    up = subprocess.Popen(
        ["sundog", "up", "--gateway", f"http://127.0.0.1:{free_ports(1)[0]}"],
        cwd=folder, env=environment, stdout=log, stderr=log,
    )  # fmt: skip
    for _ in range(600):
        if (folder / ".sundog" / "up.json").exists() and b"Sundog is up" in (
            folder / "up.log"
        ).read_bytes():
            return up
        if up.poll() is not None:
            break
        time.sleep(0.1)
    up.kill()
    raise SystemExit("sundog up did not start:\n" + (folder / "up.log").read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links-only", action="store_true", help="do not run the README's blocks")
    options = parser.parse_args()
    faults = broken_links(REPO)
    if not options.links_only:
        folder = copy_of(REPO)
        try:
            faults += run_blocks((REPO / "README.md").read_text(), folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(
        "docs: every link leads somewhere"
        + ("" if options.links_only else ", every README block ran")
        if not faults
        else f"docs: {len(faults)} faults"
    )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
