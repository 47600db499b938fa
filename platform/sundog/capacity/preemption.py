"""The agent beside each raylet: hears the cloud's notice and drains this node, and only this one.

Runs as the user that runs Ray. A metadata service that is slow, refuses or lies costs polls, never
the node; on rebalance advice a spare is asked for, and the node drains only where the operator said so.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sundog.capacity.metadata import SERVICES, Metadata, MetadataUnavailable, Notice
from sundog.capacity.noderecord import Creates, write_record
from sundog.clock import WALL, Clock
from sundog.errors import ClusterError, SundogError
from sundog.ledger import Entry, Ledger, RootLedger
from sundog.rayapi.drain import Drains, Gcs, RayNode

if TYPE_CHECKING:
    from sundog.storage.root import Root

# EC2 gives two minutes, GCP and Azure thirty seconds: two seconds of them are worth a request
# that takes a millisecond.
POLL_S = 2.0
SLOWEST_POLL_S = 30.0
SLOWEST_RECORD_S = 3600.0
# An agent that was asked to end may be in the middle of a call to a head that is gone.
REPLACE_TRIES = 30
# A deadline outside these bounds is not one that any of the clouds gives.
SHORTEST_NOTICE_S, LONGEST_NOTICE_S = 1.0, 3600.0
ASSUMED_NOTICE_S = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}


@dataclass
class Agent:
    """One node's ear. `step` is one poll; it returns how long to sleep before the next."""

    cloud: str
    metadata: Metadata
    cluster: Drains
    instance_id: str
    clock: Clock = WALL
    drain_on_advice: bool = False
    spare: Callable[[str], None] | None = None
    """Asks for a node like the one with this Ray id."""
    say: Callable[..., None] = print
    drained: bool = False
    root: Creates | None = None
    ledger: Ledger | None = None
    _failures: int = 0
    _record_failures: int = 0
    _record_s: float = 0.0
    _advised: set[str] = field(default_factory=set)

    def step(self) -> float:
        now_s = self.clock.now_s()
        try:
            notices = self.metadata.notices(now_s)
        except MetadataUnavailable as error:
            self._failures += 1
            if self._failures in (1, 10, 100):
                self._tell("metadata-unavailable", detail=error.message)
            return min(POLL_S * 2.0 ** min(self._failures, 10), SLOWEST_POLL_S)
        self._failures = 0
        if self.root is not None and now_s >= self._record_s:
            self._record(self.root, now_s)
        for notice in notices:
            if notice.kind == "interruption" or self.drain_on_advice:
                self._drain(notice, now_s)
            elif notice.detail not in self._advised:
                self._advise(notice)
        return POLL_S

    def _advise(self, notice: Notice) -> None:
        """Advice may come to nothing: a spare gets ready, and the work here goes on."""
        if self.spare is not None and not self._advised:
            try:
                mine = self._own(self.cluster.nodes())
            except ClusterError as error:
                self._tell("no-spare", detail=error.message)
                return  # heard again at the next poll
            if mine is None:
                return
            self.spare(mine.node_id)
        self._advised.add(notice.detail)
        self._tell("advice", detail=notice.detail, spare=self.spare is not None)

    def _record(self, root: Creates, now_s: float) -> None:
        """Say once in the storage root what this node is; asked again until it has joined."""
        try:
            mine = self._own(self.cluster.nodes())
            if mine is not None:
                about = self.metadata.about()
                write_record(root, mine.node_id, self.instance_id, self.cloud, about, now_s)
                self.root = None
                self._tell("recorded", node=mine.node_id)
        except SundogError as error:
            # Asked again, less and less often: whatever is away now may stay away.
            self._record_failures += 1
            pause_s = POLL_S * 2.0 ** min(self._record_failures, 20)
            self._record_s = now_s + min(pause_s, SLOWEST_RECORD_S)
            self._tell("not-recorded", detail=error.message)

    def _drain(self, notice: Notice, now_s: float) -> None:
        if self.drained:
            return
        deadline_s = self._believable(notice, now_s)
        try:
            mine = self._own(self.cluster.nodes())
            if mine is None:
                self._tell("unknown-node", detail=f"Ray knows no node of {self.instance_id}")
                return  # it may not have joined yet; the next poll asks again
            self.cluster.drain(mine.node_id, deadline_s, f"{self.cloud}: {notice.detail}")
        except ClusterError as error:
            self._tell("drain-failed", detail=error.message)
            return
        self.drained = True
        self._tell("drained", detail=notice.detail, node=mine.node_id, deadline_s=deadline_s)
        self._write_down(notice, now_s)

    def _write_down(self, notice: Notice, now_s: float) -> None:
        """An interruption in the ledger, once: what is expected of this zone rests on it."""
        if self.ledger is None or notice.kind != "interruption":
            return
        ledger, self.ledger = self.ledger, None
        try:
            about = {**self.metadata.about(), "why": notice.detail}
            price = float(about["usd_hour"]) if "usd_hour" in about else None
            cluster = about.get("cluster", "")
            ledger.append(Entry("interruption", now_s, self.instance_id, cluster, price, about))
        except (OSError, ValueError, SundogError) as error:
            self._tell("not-in-the-ledger", detail=str(error))

    def _own(self, nodes: list[RayNode]) -> RayNode | None:
        found = [n for n in nodes if n.instance_id == self.instance_id and self.instance_id]
        return found[0] if len(found) == 1 else None

    def _believable(self, notice: Notice, now_s: float) -> float:
        """The cloud's deadline where one could be; else the least this cloud promises."""
        left = None if notice.deadline_s is None else notice.deadline_s - now_s
        if left is not None and SHORTEST_NOTICE_S <= left <= LONGEST_NOTICE_S:
            return now_s + left
        if left is not None and left < SHORTEST_NOTICE_S:
            return now_s + SHORTEST_NOTICE_S  # late or past: as fast as can be
        return now_s + ASSUMED_NOTICE_S[self.cloud]

    def _tell(self, event: str, **about: Any) -> None:
        self.say(json.dumps({"at_s": self.clock.now_s(), "event": event, **about}), flush=True)

    def run(self) -> None:
        """Poll until the process is ended. A drained node is still polled, to say what it hears."""
        while True:
            self.clock.sleep(self.step())


def only_one(path: Path, gcs: str, clock: Clock = WALL) -> IO[str] | None:
    """A lock held as long as this process lives, or None where another agent of this head holds it.

    One that listens to another head is asked to end: the node has joined this one since. ClusterError
    where it does not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("a+")
    for _ in range(REPLACE_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid, its = _holder(handle)
            if its == gcs:
                handle.close()
                return None
            if its and _is_agent(pid):
                os.kill(pid, signal.SIGTERM)
            clock.sleep(1.0)
            continue
        handle.truncate(0)
        handle.write(json.dumps({"pid": os.getpid(), "gcs": gcs}))
        handle.flush()
        return handle
    handle.close()
    raise ClusterError(
        f"another agent holds {path} and does not end", "end it, or start the node anew"
    )


def _holder(handle: IO[str]) -> tuple[int, str]:
    """Who wrote the lock file last: (0, "") where nobody said, or is only just about to."""
    handle.seek(0)
    try:
        said = json.loads(handle.read())
        return int(said["pid"]), str(said["gcs"])
    except (ValueError, KeyError, TypeError):
        return 0, ""


def _is_agent(pid: int) -> bool:
    """Whether that process is an agent of this user, and not one that got its number since."""
    try:
        return b"sundog.capacity.preemption" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sundog-preemption", description=__doc__)
    parser.add_argument("cloud", choices=sorted(SERVICES))
    parser.add_argument("--gcs", required=True, help="the head's address, host:port")
    parser.add_argument("--instance", default=os.environ.get("RAY_CLOUD_INSTANCE_ID", ""))
    parser.add_argument("--metadata", default=os.environ.get("SUNDOG_METADATA_URL"))
    parser.add_argument("--root", default=os.environ.get("SUNDOG_ROOT"), help="storage root")
    parser.add_argument(
        "--drain-on-advice", action="store_true",
        default=os.environ.get("SUNDOG_DRAIN_ON_ADVICE", "") not in ("", "0"),
        help="drain on rebalance advice too; a spec says so with env: {SUNDOG_DRAIN_ON_ADVICE: '1'}",
    )  # fmt: skip
    parser.add_argument(
        "--no-spare", action="store_true", help="launch no spare node on rebalance advice"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if not arguments.instance:
        print("RAY_CLOUD_INSTANCE_ID is not set: which node is this?", file=sys.stderr)
        return 2
    # 0 ends the loop that starts an agent again: one that was replaced must not come back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        lock = only_one(
            Path.home() / ".sundog" / f"preemption-{arguments.instance}.lock", arguments.gcs
        )
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    if lock is None:
        return 0
    agent = Agent(
        arguments.cloud, SERVICES[arguments.cloud](arguments.metadata), Gcs(arguments.gcs),
        arguments.instance, drain_on_advice=arguments.drain_on_advice,
    )  # fmt: skip
    if not arguments.no_spare:
        agent.spare = lambda node_id: ask_spare(arguments.gcs, node_id)
    agent.root = root = _root(arguments.root)
    agent.ledger = RootLedger(root) if root is not None else None
    agent.run()
    return 0


def ask_spare(gcs: str, node_id: str) -> None:
    """In a process of its own: an agent must not be a driver, and polls go on meanwhile."""
    command = [sys.executable, "-m", "sundog.capacity.spare", "--gcs", gcs, "--node", node_id]
    subprocess.Popen(command)


def _root(url: str | None) -> Root | None:
    """The storage root, or None: an agent without one still hears notices."""
    if not url:
        return None
    from sundog.storage.root import open_root

    try:
        return open_root(url)
    except SundogError as error:
        print(f"no node record: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
