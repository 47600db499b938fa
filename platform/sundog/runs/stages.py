"""What a change of a run's group cost, stage by stage: from the last step before it to the first after.

Pure: takes the stamps that the controller and the new group's first worker left; asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sundog import telemetry
from sundog.runs.news import nodes_of


@dataclass(frozen=True)
class Change:
    """One change. `stages` are seconds: `noticed` until it was seen, `parked` until every worker was
    out of the old group, `gathered` until those of the new one were there, `formed` until they had
    agreed on where the run stands, `stepped` the first step. `took_s` is the pause between steps."""

    event: str
    before: int
    workers: int
    step: int
    steps_back: int
    took_s: float
    stages: Mapping[str, float]
    nodes: int  # that stood still: distinct ones, of the larger group
    cause: str

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "step": self.step, "steps_back": self.steps_back, "took_s": self.took_s,
            "workers": [self.before, self.workers], "nodes": self.nodes, "cause": self.cause,
            "stages": dict(self.stages),
        }  # fmt: skip

    @property
    def line(self) -> str:
        """`drained: 2 → 1 workers at step 90 after 0.4 s, no step computed again`."""
        what = {telemetry.RUN_RESIZED: "grew", telemetry.RUN_DRAINED: "drained"}.get(
            self.event, "recovered"
        )
        again = (
            f", going over {self.steps_back} steps again"
            if self.steps_back
            else ", no step computed again"
        )
        ending = "" if self.workers == 1 else "s"
        return (
            f"{what}: {self.before} → {self.workers} worker{ending} at step {self.step:,} "
            f"after {self.took_s:.1f} s{again}"
        )


def change(
    last: Mapping[str, Any], first: Mapping[str, Any], stamps: Mapping[str, Any] | None
) -> Change:
    """The change between the old group's `last` news and the new group's `first`.

    `stamps` are the controller's; None where nobody took them (stock Ray Train). Clocks of several
    machines meet here: a stage is never less than 0.
    """
    left = first.get("left_off") or {}
    # The process went on from its own memory: it knows to the millisecond when it last stepped.
    knows = left.get("at_s") is not None and left.get("step", -1) >= last["step"]
    paused_s = left["at_s"] if knows else last["at_s"]
    done = left["step"] if knows else last["step"]
    back = max(0, done + 1 - first["step"])
    grown = first["world"] > last["world"] and not back
    cause = (stamps or {}).get("cause", "grow" if grown else "lost")
    event = {"notice": telemetry.RUN_DRAINED, "grow": telemetry.RUN_RESIZED}.get(
        cause, telemetry.RUN_RECOVERED
    )
    return Change(
        event, last["world"], first["world"], first["step"], back,
        round(max(0.0, first["at_s"] - paused_s), 4),
        _stages(cause, paused_s, first, stamps or {}), _nodes(last, first), cause,
    )  # fmt: skip


def restart(
    record: Mapping[str, Any], started_s: float, first: Mapping[str, Any],
    stamps: Mapping[str, Any] | None,
) -> Change:  # fmt: skip
    """What a killed driver or head cost: from the last news in its `record` to the `first` of the
    workers whose driver began at `started_s`. Nobody was parked; `noticed` is how long no driver was
    there."""
    paused_s = float(record["accounted_s"])
    marks = {"noticed": started_s, "formed": first["joined_s"], "stepped": first["at_s"]}
    if stamps and "gathered_s" in stamps:
        marks = {"noticed": started_s, "gathered": stamps["gathered_s"], **marks}
    found, at_s = {}, paused_s
    for name, mark_s in marks.items():
        found[name] = round(max(0.0, mark_s - at_s), 4)
        at_s = mark_s
    return Change(
        telemetry.RUN_RECOVERED, int(record.get("workers") or 0), first["world"], first["step"],
        max(0, int(record.get("step") or 0) + 1 - first["step"]),
        round(max(0.0, first["at_s"] - paused_s), 4), found, _nodes(record, first), "driver",
    )  # fmt: skip


def _nodes(last: Mapping[str, Any], first: Mapping[str, Any]) -> int:
    return max(len(nodes_of(last)), len(nodes_of(first)))


def _stages(
    cause: str, paused_s: float, first: Mapping[str, Any], stamps: Mapping[str, Any]
) -> dict[str, float]:
    marks = [("parked", "parked_s"), ("gathered", "gathered_s")]
    if any(key not in stamps for _, key in marks) or "seen_s" not in stamps:
        return {}
    found = {}
    at_s = float(stamps["seen_s"])
    if cause == "lost":  # the others are seen while everybody still works
        found["noticed"] = at_s - paused_s
    for name, key in marks:
        found[name] = stamps[key] - at_s
        at_s = stamps[key]
    found["formed"] = first["joined_s"] - at_s
    found["stepped"] = first["at_s"] - first["joined_s"]
    return {name: round(max(0.0, seconds), 4) for name, seconds in found.items()}
