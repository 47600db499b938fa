"""Rollouts of running services: begins them, feeds them what was seen, stores them, says what holds.

serving/rollout.py decides. A new state is in the store before anybody acts on it, so a control that
is killed at any moment goes on from there; the store's lease keeps two from acting.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sundog import telemetry
from sundog.clock import Clock
from sundog.control.counters import KEEP_S, Counters, differences, minutes, recent
from sundog.control.serving_plan import READY, App
from sundog.errors import FormatTooNew, NotFound
from sundog.serving.rollout import begin, decide
from sundog.serving.rollout_facts import (
    ENDED,
    Command,
    Decision,
    Health,
    Plan,
    Snapshot,
    State,
)
from sundog.spec.service import Rollout
from sundog.store import Lease, Store

FORMAT = 1
MAX_DIFFERENCES = 50
MAX_HISTORY = 200
LONGEST_TICK_S = 15.0
SHORTEST_TICK_S = 0.5
SAY_EVERY_S = 5.0
"""How often a reason that only counts down is written."""

log = logging.getLogger("sundog.control")


@dataclass
class Record:
    """One rollout of one service. `applied`: its outcome is in the service's own row."""

    service: str
    number: int
    model: str
    plan: Plan
    spec: Rollout
    state: State
    entry: dict[str, Any]
    from_s: float
    applied: bool = False
    restarts: int = 0
    replicas: frozenset[str] = frozenset()
    differences: list[Any] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    decision: Decision | None = None
    looked_s: float = 0.0
    written_s: float = 0.0

    @property
    def ended(self) -> bool:
        return self.state.phase in ENDED

    @property
    def tick_s(self) -> float:
        return min(LONGEST_TICK_S, max(SHORTEST_TICK_S, self.plan.step_s / 4))

    def document(self) -> dict[str, Any]:
        """Everything that the store keeps and `sundog rollout status` shows."""
        decision, state = self.decision, self.state
        return {
            "format": FORMAT, "service": self.service, "number": self.number, "model": self.model,
            "baseline": self.plan.baseline, "candidate": self.plan.candidate,
            "strategy": self.plan.strategy, "phase": state.phase, "step": state.step,
            "reason": state.reason, "since_s": state.since_s, "started_s": state.started_s,
            "weights": decision.weights if decision else {},
            "mirror": decision.mirror if decision else 0.0,
            "standby": list(decision.standby) if decision else [],
            "evidence": [asdict(r) | {"said": str(r)} for r in decision.evidence]
            if decision else [],
            "plan": asdict(self.plan), "spec": self.spec.model_dump(mode="json"),
            "state": json.loads(state.to_json()), "entry": self.entry, "from_s": self.from_s,
            "applied": self.applied, "restarts": self.restarts,
            "differences": self.differences, "history": self.history,
        }  # fmt: skip


def read(document: Mapping[str, Any]) -> Record:
    """The record that `Record.document` wrote. FormatTooNew."""
    if document["format"] > FORMAT:
        raise FormatTooNew("a rollout was written by a later Sundog", "finish it with that version")
    plan = dict(document["plan"])
    plan.update(steps=tuple(plan["steps"]), guards=tuple(plan["guards"]))
    return Record(
        document["service"], document["number"], document["model"], Plan(**plan),
        Rollout.model_validate(document["spec"]),
        State.from_json(json.dumps(document["state"])), document["entry"], document["from_s"],
        document["applied"], document["restarts"], frozenset(), document["differences"],
        document["history"],
    )  # fmt: skip


class Rollouts:
    """At most one rollout a service. Called under the services controller's lock only."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        counters: Counters,
        clock: Clock,
        tell: Callable[[str, dict[str, Any]], object],
    ) -> None:
        self._store = store
        self._lease = lease
        self._counters = counters
        self._clock = clock
        self._tell = tell
        self._last: dict[str, Record] = {}
        for row in store.rollouts(limit=1000):
            self._last.setdefault(row["service"], read(row["document"]))

    def last(self, service: str) -> Record | None:
        return self._last.get(service)

    def live(self, service: str) -> Record | None:
        """The rollout whose outcome the service does not have yet."""
        record = self._last.get(service)
        return record if record is not None and not record.applied else None

    # -- beginning and feeding

    def begin(
        self,
        service: str,
        model: str,
        spec: Rollout,
        baseline: str,
        candidate: str,
        entry: dict[str, Any],
    ) -> Record:
        """A new rollout, in the store. ServiceError while another one runs."""
        now_s = self._clock.now_s()
        plan = Plan.of(spec, baseline, candidate)
        before = self._last.get(service)
        state = begin(plan, now_s, before.state if before is not None else None)
        # What came before is the reference of a blue/green, but no judgement of an earlier try.
        ended_s = before.state.since_s if before is not None else 0.0
        record = Record(
            service, (before.number if before is not None else 0) + 1, model, plan, spec, state,
            entry, from_s=max(now_s - KEEP_S, ended_s),
        )  # fmt: skip
        self._last[service] = record
        record.history.append(_moment(state, now_s))
        self._write(record)
        log.info("rollout %s: %s to %s by %s", service, baseline, candidate, plan.strategy)
        self._store.add_event(
            self._lease, telemetry.ROLLOUT_STARTED, service,
            {"baseline": baseline, "candidate": candidate, "strategy": plan.strategy},
        )  # fmt: skip
        return record

    def step(self, record: Record, app: App | None, want: str) -> Decision:
        """One look: what was seen since the last one, decided and stored."""
        now_s, plan = self._clock.now_s(), record.plan
        reports = self._counters.reports(record.service)
        self._count_restarts(record, app)
        record.differences = (record.differences + differences(reports, record.looked_s or now_s))[
            -MAX_DIFFERENCES:
        ]
        record.looked_s = now_s
        seen = Snapshot(
            now_s,
            minutes(
                reports, baseline=plan.baseline, candidate=plan.candidate,
                mirrored=plan.strategy == "shadow", tick_s=record.tick_s,
                after=record.state.minute, now_s=now_s, from_s=record.from_s,
            ),
            Health(
                ready=app is not None and app.status == READY and app.digest == want,
                restarts=record.restarts,
                failed=app.message or app.status
                if app is not None and app.status == "DEPLOY_FAILED" else "",
                recent=recent(reports, plan.candidate, now_s),
                recent_baseline=recent(reports, plan.baseline, now_s),
            ),
        )  # fmt: skip
        return self._take(record, decide(plan, record.state, seen), now_s)

    def _count_restarts(self, record: Record, app: App | None) -> None:
        """Replicas of the new version that were there and are gone, none of them by our wish."""
        now = app.replica_ids if app is not None else frozenset()
        lost = len(record.replicas - now)
        if app is not None and record.replicas and len(now) < len(record.replicas):
            wanted = app.replicas if app.replicas is not None else len(now)
            lost = min(lost, max(0, lost - max(0, len(record.replicas) - wanted)))
        record.restarts += lost
        record.replicas = now

    def _take(self, record: Record, decision: Decision, now_s: float) -> Decision:
        before, record.state, record.decision = record.state, decision.state, decision
        moved = (before.phase, before.step) != (decision.phase, decision.step)
        if moved:
            record.history = [*record.history, _moment(decision.state, now_s)][-MAX_HISTORY:]
            log.info("rollout %s: %s, %s", record.service, decision.phase, decision.reason)
        silent = replace(before, reason="") == replace(decision.state, reason="")
        if moved or not silent or now_s - record.written_s > SAY_EVERY_S:
            self._write(record)
        if moved:
            self._store.add_event(
                self._lease, telemetry.ROLLOUT_MOVED, record.service,
                {"phase": decision.phase, "step": decision.step, "reason": decision.reason},
            )  # fmt: skip
        return decision

    def _write(self, record: Record) -> None:
        record.written_s = self._clock.now_s()
        self._store.put_rollout(
            self._lease, record.service, record.number, record.state.phase, record.document()
        )

    # -- what people ask

    def command(self, service: str, command: Command, by: str) -> Record:
        """pause, resume, promote, abort. NotFound without a rollout; ServiceError where it makes
        no sense now."""
        record = self.live(service)
        if record is None:
            last = self._last.get(service)
            ended = f"; the last one has ended: {last.state.reason}" if last is not None else ""
            raise NotFound(
                f"no rollout of {service!r} runs{ended}",
                "deploy another version to start one, or return to an earlier one: "
                f"sundog rollback {service}",
            )
        now_s = self._clock.now_s()
        seen = Snapshot(now_s, command=command, by=by)
        self._take(record, decide(record.plan, record.state, seen), now_s)
        return record

    def abort(self, record: Record, why: str) -> None:
        """Ended by what happened to the service rather than by anybody's command."""
        if not record.ended:
            now_s = self._clock.now_s()
            state = record.state.moved("aborted", f"aborted: {why}", now_s)
            self._take(record, decide(record.plan, state, Snapshot(now_s)), now_s)

    def applied(self, record: Record) -> None:
        """The service has the outcome in its own row: tell the webhook, and close the record.

        Told before it is marked: a control that is killed in between tells twice, never not at all.
        """
        if record.spec.webhook:
            self._tell(record.spec.webhook, _news(record))
        record.applied = True
        self._write(record)

    def forget(self, service: str) -> None:
        """The service is gone: whatever ran has ended."""
        record = self.live(service)
        if record is not None:
            self.abort(record, "the service was undeployed")
            self.applied(record)

    def standby(self, service: str) -> tuple[str, ...]:
        """Versions to keep warm after a promotion, for the instant way back."""
        record = self._last.get(service)
        if record is None or not record.ended or record.state.phase != "promoted":
            return ()
        now = Snapshot(self._clock.now_s())
        return decide(record.plan, record.state, now).standby


def _moment(state: State, now_s: float) -> dict[str, Any]:
    return {"at_s": now_s, "phase": state.phase, "step": state.step, "reason": state.reason}


def _news(record: Record) -> dict[str, Any]:
    """What a webhook is told."""
    document = record.document()
    words = ("service", "model", "number", "baseline", "candidate", "strategy", "phase", "reason")
    return {
        **{word: document[word] for word in words},
        "event": telemetry.ROLLOUT_ENDED,
        "text": f"{record.service}: {record.plan.candidate} {record.state.reason}",
        "evidence": [r["said"] for r in document["evidence"]],
        "at_s": record.state.since_s,
    }
