"""From one version of a service to another: whether by rollout, and what its outcome means.

Values in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from sundog.control.rollout import Record
from sundog.control.serving_plan import (
    App,
    Decision,
    Progress,
    Resolved,
    Rolling,
    with_parts,
)
from sundog.serving.rollout_facts import Decision as Said
from sundog.spec import ServiceSpec
from sundog.spec.base import split_reference


def progress_of(state: Mapping[str, Any]) -> Progress:
    """What the store keeps of a service; words of a later Sundog are left aside."""
    known = {f.name for f in fields(Progress)}
    return Progress(**{k: v for k, v in state.items() if k in known})


def starts_rollout(spec: ServiceSpec, resolved: Resolved, progress: Progress) -> bool:
    """Whether another version of the running model is wanted, and by steps."""
    entry = progress.entries.get(progress.active or "", {})
    return (
        spec.rollout.strategy != "all-at-once"
        and resolved.version is not None
        and progress.active not in (None, str(resolved.version))
        and progress.held is None
        and entry.get("model", resolved.model) == resolved.model
    )


def stays(
    spec: ServiceSpec, resolved: Resolved, progress: Progress, apps: Mapping[str, App] | None
) -> tuple[Resolved | None, str]:
    """The running version, where it must stay before (or instead of) a rollout, and the reason.

    `apps`: None where only the signature is in question.
    """
    active = progress.active
    entry = progress.entries.get(active or "")
    if active is None or entry is None:
        return None, ""
    running = _resolved(active, entry)
    if apps is not None and active not in apps:
        return running, ""
    if entry["signature"] != resolved.signature:
        return running, (
            f"version {resolved.version} was not rolled out: it takes and gives "
            f"{_words(resolved.signature)}, version {active} {_words(entry['signature'])}; "
            "deploy it as a service of its own, or with `rollout: {strategy: all-at-once}`"
        )
    return None, ""


def _resolved(version: str, entry: Mapping[str, Any]) -> Resolved:
    return Resolved(
        int(version), "", entry["kind"], entry["signature"], str(entry.get("model", ""))
    )


def _words(signature: Mapping[str, Any]) -> str:
    def tensors(rows: Sequence[Mapping[str, Any]]) -> str:
        return ", ".join(f"{t['name']} {t['datatype']} {list(t['shape'])}" for t in rows)

    return f"{tensors(signature['inputs'])} -> {tensors(signature['outputs'])}"


def pinned(spec: ServiceSpec, record: Record | None) -> ServiceSpec:
    """The spec with the model and replicas that a rollout began with: what else it names waits."""
    if record is None:
        return spec
    model = {"model": f"{record.model}@{record.plan.candidate}"}
    return with_parts(spec, {**record.made_of, **model})


def wanted(record: Record, resolved: Resolved) -> str:
    """What the spec names while a rollout runs: a version of its model, or `other@5`."""
    if resolved.version is None:
        return record.plan.candidate
    if resolved.model and resolved.model != record.model:
        return f"{resolved.model}@{resolved.version}"
    return str(resolved.version)


def rolling_of(record: Record, said: Said, waits: str) -> Rolling:
    """What the plan and the routes need of a rollout that is under way. `waits`: see `wanted`."""
    plan = record.plan
    reason = f"rollout to version {plan.candidate}: {said.reason}"
    if waits not in (plan.baseline, plan.candidate):
        reason += f"; {waits if '@' in waits else f'version {waits}'} waits for its end"
    mirror = None
    if said.mirror > 0:
        mirror = {
            "baseline": plan.baseline, "candidate": plan.candidate, "share": said.mirror,
            "tolerance": record.spec.tolerance,
        }  # fmt: skip
    traffic = {
        # The candidate first: who is on it by a sticky key stays when its share grows.
        "weights": {
            v: said.weights[v] for v in (plan.candidate, plan.baseline) if said.weights[v] > 0
        },
        "salt": f"{record.service}/{record.number}",
        "sticky": record.spec.sticky,
        "mirror": mirror,
        "labels": "answers" in plan.guards,
    }
    return Rolling(plan.baseline, plan.candidate, record.entry, reason, traffic)


def share_ahead(record: Record) -> float:
    """The share of traffic that the next move of a rollout may give its candidate at once."""
    plan, state = record.plan, record.state
    if plan.strategy == "canary":
        ahead = (
            plan.steps[state.step :] if state.phase == "warming" else plan.steps[state.step + 1 :]
        )
        return ahead[0] if ahead else 1.0
    return plan.share if plan.strategy == "ab" else 1.0


def outcome(record: Record, progress: Progress, resolved: Resolved) -> tuple[Progress, Resolved]:
    """The service once the rollout has ended: who answers, and what is held back."""
    plan, state = record.plan, record.state
    promoted = state.phase == "promoted"
    winner = plan.candidate if promoted else plan.baseline
    entries = {**progress.entries, plan.candidate: record.entry}
    entry = entries.get(winner, record.entry)
    held = None
    if not promoted:
        why = f"version {plan.candidate} does not answer: {state.reason}"
        held = {
            "version": plan.baseline, "instead_of": plan.candidate, "why": why,
            "model": record.model,
        }  # fmt: skip
    after = replace(progress, active=winner, entries=entries, held=held, traffic=None)
    return after, _resolved(winner, entry)


def with_fault(decision: Decision, fault: str) -> Decision:
    if not fault:
        return decision
    return replace(decision, progress=replace(decision.progress, message=fault))


def previous_version(
    revisions: Sequence[Mapping[str, Any]], model: str, active: str | None
) -> str | None:
    """What answered before the present version, from the service's history."""
    for revision in reversed(revisions):
        name, version = split_reference(str(revision["model"]))
        if name == model and version != active:
            return version
    return None
