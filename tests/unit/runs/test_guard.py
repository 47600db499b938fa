"""The process beside a guard's actor: a real one, asked to stop as a node's notice does."""

from __future__ import annotations

import signal
import sys
import time

import psutil

from sundog.runs.guard import Runner

SCRIPT = (
    "import os, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
    "print('restart', os.environ['SUNDOG_RESTART'], flush=True)\n"
    "time.sleep(60)\n"
)


def until(runner: Runner, word: str) -> list[str]:
    deadline, seen = time.monotonic() + 30, []
    while not any(word in line for line in seen) and time.monotonic() < deadline:
        seen += runner.look()[1]
        time.sleep(0.02)
    return seen


def ended(runner: Runner) -> tuple[int | None, list[str]]:
    deadline, seen, code = time.monotonic() + 30, [], None
    while code is None and time.monotonic() < deadline:
        code, lines = runner.look()
        seen += lines
        time.sleep(0.02)
    return code, seen


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_script_is_asked_to_stop_and_says_how_it_ended():
    runner = Runner([sys.executable, "-c", SCRIPT], {"SUNDOG_RESTART": "2"})
    assert until(runner, "restart") == ["restart 2"]
    assert runner.look() == (None, [])
    runner.stop(signal.SIGTERM)
    assert ended(runner) == (143, ["saved"])
    runner.stop(signal.SIGTERM)  # it is gone already: nothing to say


def test_what_the_script_started_is_stopped_with_it():
    parent = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    runner = Runner([sys.executable, "-c", parent], {})
    child = psutil.Process(int(until(runner, "child")[-1].split()[1]))
    runner.stop(signal.SIGKILL)
    assert ended(runner)[0] == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while not gone(child):
        assert time.monotonic() < deadline, "the script's own process outlived it"
        time.sleep(0.05)


def test_a_command_that_is_not_there_is_named():
    runner = Runner(["no-such-program"], {})
    assert runner.look() == (127, ["no-such-program: No such file or directory"])
    runner.stop(signal.SIGTERM)
