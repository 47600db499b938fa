"""Decisions about services, from observations alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sundog.control.serving_plan import (
    App,
    Progress,
    Resolved,
    Rolling,
    app_name,
    decide,
    decide_rolling,
    digest,
    made_of,
    route,
    service_of,
    unheld,
    with_parts,
)
from sundog.spec import ServiceSpec

SPEC = ServiceSpec.model_validate({"service": "digits", "model": "digits@champion"})
SIGNATURE = {"inputs": [], "outputs": []}
DIGEST = digest(SPEC)


def at(version):
    return Resolved(version, "", "torch-export", SIGNATURE)


def app(status="RUNNING", message="", digest=DIGEST):
    return App(status, message, digest)


def after(*rounds):
    """The decision after these (resolved, apps) observations in turn."""
    progress = Progress()
    for resolved, apps in rounds:
        decision = decide(SPEC, resolved, apps, progress)
        progress = decision.progress
    return decision


def test_a_new_service_is_deployed_and_routed_only_when_it_runs():
    first = after((at(1), {}))
    assert (first.deploy.version, first.progress.state, first.progress.active) == (
        "1",
        "starting",
        None,
    )
    assert route(SPEC, first.progress)["weights"] == {}
    starting = after((at(1), {}), (at(1), {"1": app("DEPLOYING")}))
    assert (starting.deploy, starting.progress.active) == (None, None)
    ready = after((at(1), {}), (at(1), {"1": app()}))
    assert (ready.deploy, ready.progress.active, ready.progress.state) == (None, "1", "ready")
    assert route(SPEC, ready.progress)["weights"] == {"1": 1.0}


def test_a_moved_alias_brings_the_new_version_up_before_routes_move():
    rounds = [(at(1), {"1": app()}), (at(2), {"1": app()})]
    assert after(*rounds).deploy.version == "2"
    rounds.append((at(2), {"1": app(), "2": app("DEPLOYING")}))
    rolling = after(*rounds)
    assert (rolling.progress.active, rolling.progress.state, rolling.retire) == ("1", "rolling", ())
    assert set(rolling.progress.entries) == {"1", "2"}
    rounds.append((at(2), {"1": app(), "2": app()}))
    moved = after(*rounds)
    assert (moved.progress.active, moved.progress.state, moved.retire) == ("2", "ready", ("1",))
    assert set(moved.progress.entries) == {"2"}
    rounds.append((at(2), {"1": app("DELETING"), "2": app()}))
    assert after(*rounds).retire == ()


def test_a_new_version_that_does_not_start_leaves_the_old_one_answering():
    failed = after(
        (at(1), {"1": app()}), (at(2), {"1": app(), "2": app("DEPLOY_FAILED", "out of memory")})
    )
    assert (failed.progress.active, failed.progress.state) == ("1", "ready")
    assert failed.progress.message == "version 2 does not start: out of memory"
    assert failed.retire == ()


def test_a_first_version_that_does_not_start_is_a_failure_with_its_reason():
    failed = after((at(1), {}), (at(1), {"1": app("DEPLOY_FAILED", "no such file")}))
    assert (failed.progress.state, failed.progress.active) == ("failed", None)
    assert "no such file" in failed.progress.message


def test_a_second_attempt_still_says_what_was_wrong_with_the_first():
    failed = [(at(1), {}), (at(1), {"1": app("DEPLOY_FAILED", "no such file")})]
    again = after(*failed, (at(1), {}))
    assert (again.deploy.version, again.progress.state) == ("1", "starting")
    assert "no such file" in again.progress.message
    cured = after(*failed, (at(1), {}), (at(1), {"1": app()}))
    assert (cured.progress.state, cured.progress.message) == ("ready", "")


def test_a_version_that_becomes_unhealthy_stays_routed():
    sick = after((at(1), {"1": app()}), (at(1), {"1": app("UNHEALTHY", "dies")}))
    assert sick.progress.active == "1"
    assert "dies" in sick.progress.message


def test_a_lost_alias_changes_nothing_but_the_message():
    lost = after((at(1), {"1": app()}), (Resolved(None, "no alias"), {"1": app()}))
    assert (lost.progress.active, lost.progress.state, lost.deploy) == ("1", "ready", None)
    assert lost.progress.message == "no alias"
    never = after((Resolved(None, "no model"), {}))
    assert (never.progress.state, never.deploy) == ("failed", None)


def test_a_changed_spec_changes_the_replicas_in_place():
    changed = after((at(1), {"1": app()}), (at(1), {"1": app(digest="old")}))
    assert changed.deploy.version == "1"
    assert changed.progress.active == "1"
    more = SPEC.model_copy(update={"queue": 5})
    assert digest(more) == DIGEST, "what only the gateway needs does not touch replicas"


def test_going_back_retires_the_version_that_was_coming():
    back = after(
        (at(1), {"1": app()}),
        (at(2), {"1": app(), "2": app("DEPLOYING")}),
        (at(1), {"1": app(), "2": app("DEPLOYING")}),
    )
    assert (back.progress.active, back.retire, back.progress.state) == ("1", ("2",), "ready")


STATUSES = st.sampled_from(["DEPLOYING", "RUNNING", "DEPLOY_FAILED", "UNHEALTHY", "DELETING"])
APPS = st.dictionaries(
    st.sampled_from("123"), st.builds(App, STATUSES, st.just("m"), st.sampled_from([DIGEST, "old"]))
)
RESOLVED = st.sampled_from([at(1), at(2), at(3), Resolved(None, "gone")])


@given(st.lists(st.tuples(RESOLVED, APPS), min_size=1, max_size=8))
def test_whatever_is_observed_routes_name_only_known_versions_and_nothing_routed_is_retired(rounds):
    progress = Progress()
    for resolved, apps in rounds:
        decision = decide(SPEC, resolved, apps, progress)
        progress = decision.progress
        routed = route(SPEC, progress)
        assert set(routed["weights"]) <= set(routed["versions"])
        assert not set(decision.retire) & set(routed["weights"])
        assert set(decision.retire) <= set(apps)
        again = decide(SPEC, resolved, apps, progress)
        assert again.progress == decision.progress, "the same observation twice changes once"


@pytest.mark.parametrize(
    ("name", "parts"),
    [("digits--v3", ("digits", "3")), ("a-b--v12", ("a-b", "12")), ("digits", None),
     ("digits--vx", None), ("--v3", None), ("sundog-gateway", None)],
)  # fmt: skip
def test_names_of_applications(name, parts):
    assert service_of(name) == parts
    if parts:
        assert app_name(*parts) == name


def test_a_version_that_is_held_back_stays_away_until_the_spec_names_another():
    held = Progress("1", {}, "ready", held={"version": "1", "instead_of": "2", "why": "w"})
    assert unheld(at(2), held) == held
    assert unheld(at(3), held).held is None
    assert unheld(at(1), held).held is None, "the held one is what the spec names"
    moving = Progress("2", {}, "ready", held={"version": "1", "instead_of": "2", "why": "w"})
    assert unheld(at(1), moving) == moving, "an alias that moved back before the traffic"
    assert decide(SPEC, at(1), {"1": app()}, held).progress.message == "w"


def test_replicas_are_counted_apart_from_what_restarts_them():
    two = App("RUNNING", "", DIGEST, 2)
    more = decide(SPEC, at(1), {"1": two}, Progress("1"), counts={"1": 3})
    assert (more.deploy.version, more.deploy.replicas) == ("1", 3)
    assert "3 replicas instead of 2" in more.deploy.why
    assert decide(SPEC, at(1), {"1": two}, Progress("1"), counts={"1": 2}).deploy is None
    asleep = decide(SPEC, at(1), {"1": two}, Progress("1"), counts={"1": 0})
    assert asleep.deploy.replicas == 0
    leaving = App("DELETING", "", DIGEST, 0)
    assert decide(SPEC, at(1), {"1": leaving}, Progress("1"), counts={"1": 2}).deploy is None


def test_a_standby_stays_and_gets_nothing():
    both = {"1": app(), "2": app()}
    kept = decide(SPEC, at(2), both, Progress("2", {"1": {}, "2": {}}), keep=("1",))
    assert kept.retire == ()
    assert set(kept.progress.entries) == {"1", "2"}
    assert route(SPEC, kept.progress)["weights"] == {"2": 1.0}
    assert decide(SPEC, at(2), both, kept.progress).retire == ("1",)


def rolling(weights, baseline="1", candidate="2"):
    traffic = {"weights": weights}
    return Rolling(baseline, candidate, {"app": "digits--v2"}, "why", traffic)


def made(version, replicas, spec=SPEC):
    return App(
        "RUNNING", "", digest(spec), replicas, frozenset(map(str, range(replicas))),
        made_of(spec, version),
    )  # fmt: skip


@given(
    there=st.integers(0, 9), base=st.integers(0, 9), new=st.integers(0, 9),
    weight=st.sampled_from([0.01, 0.5, 1.0]), changed=st.booleans(),
)  # fmt: skip
def test_during_a_rollout_both_versions_get_the_replicas_they_need(
    there, base, new, weight, changed
):
    before = SPEC.model_copy(update={"env": {"A": "1"}}) if changed else SPEC
    apps = {"1": made("1", there, before), "2": made("2", 1)}
    weights = {"2": weight, "1": 1 - weight} if weight < 1 else {"2": 1.0}
    decision = decide_rolling(SPEC, rolling(weights), apps, Progress("1"), {"1": base, "2": new})
    numbers = {v: a.replicas for v, a in apps.items()}
    for one in decision.deploys:
        assert one.resizes, "no replica restarts"
        assert with_parts(SPEC, one.made_of).env == (before if one.version == "1" else SPEC).env
        assert numbers[one.version] != one.replicas
        numbers[one.version] = one.replicas
    assert numbers["2"] == max(1, new)
    standby = weight == 1
    assert numbers["1"] == max(1, base, there if standby else 0), "a standby never shrinks"


def test_the_running_version_follows_the_load_while_another_one_starts_or_is_not_found():
    apps = {"1": made("1", 2), "2": App("DEPLOYING", "", DIGEST, 1)}
    grown = decide(SPEC, at(2), apps, Progress("1"), counts={"1": 5, "2": 1})
    assert [(d.version, d.replicas) for d in grown.deploys] == [("1", 5)]
    lost = decide(SPEC, Resolved(None, "gone"), apps, Progress("1"), counts={"1": 5, "2": 1})
    assert [(d.version, d.replicas, d.resizes) for d in lost.deploys] == [("1", 5, True)]


def test_what_replicas_are_made_of_makes_them_again():
    spec = SPEC.model_copy(update={"allow_code": True, "env": {"A": "1"}, "model": "digits@3"})
    later = SPEC.model_copy(update={"model": "other@7", "queue": 3})
    again = with_parts(later, made_of(spec, 3))
    assert digest(again) == digest(spec) != digest(later)
    assert (again.model, again.queue) == ("digits@3", 3)


def test_another_models_version_of_the_same_number_is_described_when_it_is_there():
    first = Resolved(3, "", "k", SIGNATURE, "m")
    second = Resolved(3, "", "k", {"inputs": ["wider"], "outputs": []}, "other")
    progress = decide(SPEC, first, {"3": app()}, Progress()).progress
    coming = decide(SPEC, second, {"3": app(digest="old")}, progress)
    assert coming.deploy.version == "3"
    assert coming.progress.entries["3"]["model"] == "m", "callers are still answered by it"
    there = decide(SPEC, second, {"3": app()}, coming.progress)
    assert there.progress.entries["3"]["signature"] == second.signature


def test_a_hold_is_of_a_models_version_and_not_of_its_number():
    held = {"version": "2", "instead_of": "3", "why": "w", "model": "m"}
    before = Progress("2", {"2": {"model": "m"}}, "ready", held=held)
    assert unheld(Resolved(3, "", "k", SIGNATURE, "m"), before) == before
    assert unheld(Resolved(3, "", "k", SIGNATURE, "other"), before).held is None
    old = Progress("2", {"2": {"model": "m"}}, "ready", held={**held, "model": ""})
    assert unheld(Resolved(3, "", "k", SIGNATURE, "other"), old).held is None
    assert unheld(Resolved(3, "", "k", SIGNATURE, "m"), old) == old, "an earlier Sundog's"


def test_what_is_done_around_a_model_makes_other_replicas_and_another_signature():
    around = ServiceSpec.model_validate({**SPEC.model_dump(mode="json"), "process": "io@1"})
    assert digest(around) != DIGEST
    made = made_of(around, "1")
    assert with_parts(SPEC, {**made, "model": "digits@1"}).process == "io@1"
    assert with_parts(around, {"model": "digits@1"}).process is None, "as an earlier Sundog's was"
    other = Resolved(1, "", "torch-export", {"inputs": [{"name": "text"}], "outputs": []})
    ready = after((at(1), {}), (at(1), {"1": app()})).progress
    replaced = decide(around, other, {"1": app()}, ready)
    assert replaced.deploy.version == "1"
    assert replaced.progress.entries["1"]["signature"] == SIGNATURE, "until they are replaced"
    there = decide(around, other, {"1": app(digest=digest(around))}, replaced.progress)
    assert there.progress.entries["1"]["signature"] == other.signature
