"""Who holds control's lease, and whether that process is certainly gone."""

import subprocess
import sys

from sundog.control.loop import holder, is_dead

NAME = "from sundog.control.loop import holder; print(holder(), flush=True); input()"


def test_a_living_holder_is_alive_and_a_killed_one_dead():
    assert not is_dead(holder())
    other = subprocess.Popen(
        [sys.executable, "-c", NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        name = other.stdout.readline().strip()
        assert not is_dead(name)
    finally:
        other.kill()
        other.wait()
    assert is_dead(name)


def test_nobody_is_declared_dead_who_may_be_elsewhere():
    host, _pid, started, pids, boot = holder().split(" ")
    gone = str(2**22 + 1)  # no machine gives out that pid
    assert is_dead(" ".join((host, gone, started, pids, boot)))
    assert not is_dead(" ".join(("elsewhere", gone, started, pids, boot)))
    assert not is_dead(" ".join((host, gone, started, "pid:[1]", boot)))
    assert not is_dead(" ".join((host, gone, started, pids, "another-boot")))
    assert not is_dead("host:7c01:1234:170000.0")  # as it was written once
