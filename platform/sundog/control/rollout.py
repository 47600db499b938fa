"""Rollouts of running services: begins them, feeds them what was seen, stores them, says what holds.

serving/rollout.py decides. A new state is in the store before anybody acts on it, so a control that
is killed at any moment goes on from there; the store's lease keeps two from acting.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sundog import telemetry
from sundog.clock import Clock
from sundog.control.counters import KEEP_S, Counters, differences, minutes, recent
from sundog.control.losses import Losses
from sundog.control.serving_plan import READY, App
from sundog.errors import FormatTooNew, NotFound
from sundog.serving.observe import ServiceCounts
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
    made_of: dict[str, Any] = field(default_factory=dict)
    """What the new version's replicas were made from when it began; empty in an earlier Sundog's."""
    applied: bool = False
    losses: dict[str, Losses] = field(default_factory=dict)
    """Of both versions."""
    differences: list[Any] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    decision: Decision | None = None
    looked_s: float = 0.0
    written_s: float = 0.0
    health: Health = field(default_factory=lambda: Health(ready=False))
    """As of the last look."""

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
            "made_of": self.made_of, "applied": self.applied, "restarts": self.health.restarts,
            "losses": {version: losses.lost for version, losses in self.losses.items()},
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
        document.get("made_of", {}), document["applied"],
        {v: Losses([(at_s, node) for at_s, node in lost])
         for v, lost in document.get("losses", {}).items()},
        document["differences"], document["history"],
    )  # fmt: skip


class Rollouts:
    """At most one rollout a service. Called under the services controller's lock only."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        counters: Counters,
        clock: Clock,
        tell: Callable[[str, str, dict[str, Any]], object],
        leaving: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """`tell(name, url, news)` sees to it that the URL gets it; `leaving()`: nodes on their way."""
        self._store = store
        self._lease = lease
        self._counters = counters
        self._clock = clock
        self._tell = tell
        self._leaving = leaving
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
        made_of: dict[str, Any],
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
            entry, max(now_s - KEEP_S, ended_s), made_of,
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

    def step(self, record: Record, apps: Mapping[str, App], want: str) -> Decision:
        """One look: what was seen since the last one, decided and stored. `apps` by version."""
        now_s, plan = self._clock.now_s(), record.plan
        reports = self._counters.reports(record.service)
        record.health = self._health(record, apps, want, reports)
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
            record.health,
        )  # fmt: skip
        return self._take(record, decide(plan, record.state, seen), now_s)

    def _health(
        self,
        record: Record,
        apps: Mapping[str, App],
        want: str,
        reports: Iterable[tuple[float, ServiceCounts]],
    ) -> Health:
        now_s, plan = self._clock.now_s(), record.plan
        base, new = apps.get(plan.baseline), apps.get(plan.candidate)
        for version in (plan.baseline, plan.candidate):
            if record.losses.setdefault(version, Losses()).look(apps.get(version), now_s):
                record.written_s = 0.0  # the next control must know of it
        lost, lost_base = record.losses[plan.candidate], record.losses[plan.baseline]
        leaving = self._leaving() if lost.lost else ()
        num_base, num_new = (max(1, len(app.replica_ids) if app else 0) for app in (base, new))
        return Health(
            ready=new is not None and new.status == READY and new.digest == want,
            baseline_ready=base is not None and bool(base.replica_ids),
            restarts=lost.count(leaving),
            restarts_baseline=lost_base.count(leaving) * num_new / num_base,
            failed=new.message or new.status
            if new is not None and new.status == "DEPLOY_FAILED" else "",
            recent=recent(reports, plan.candidate, now_s),
            recent_baseline=recent(reports, plan.baseline, now_s),
        )  # fmt: skip

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
        ready = Health(ready=record.health.ready, baseline_ready=record.health.baseline_ready)
        seen = Snapshot(now_s, health=ready, command=command, by=by)
        self._take(record, decide(record.plan, record.state, seen), now_s)
        return record

    def abort(self, record: Record, why: str) -> None:
        """Ended by what happened to the service rather than by anybody's command."""
        if not record.ended:
            now_s = self._clock.now_s()
            state = record.state.moved("aborted", f"aborted: {why}", now_s)
            self._take(record, decide(record.plan, state, Snapshot(now_s)), now_s)

    def applied(self, record: Record) -> None:
        """The service has the outcome in its own row: owe it to the webhook, and close the record.

        What is owed is in the store before the record is closed, and until the URL has taken it.
        """
        if record.spec.webhook:
            name = f"rollout/{record.service}/{record.number}"
            self._tell(name, record.spec.webhook, _news(record))
        record.applied = True
        self._write(record)

    def returned(self, service: str, spec: Rollout, words: dict[str, Any]) -> None:
        """Somebody went back to a version by hand: the webhook is told, as of a rollout's end."""
        if spec.webhook:
            at_s = self._clock.now_s()
            news = {
                "service": service, **words, "event": telemetry.ROLLOUT_ENDED, "evidence": [],
                "phase": "rolled-back", "text": f"{service}: {words['reason']}", "at_s": at_s,
            }  # fmt: skip
            self._tell(f"rollback/{service}/{at_s}", spec.webhook, news)

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
