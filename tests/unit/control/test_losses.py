"""Which replicas that went were lost: not those of our wish, of a drained node, or out of sight."""

from hypothesis import given
from hypothesis import strategies as st

from sundog.control.losses import WINDOW_S, Losses
from sundog.control.serving_plan import App


def app(ids, wanted=None, there=None, moving=()):
    """Running `ids`, of which `there` are known besides; all on node n."""
    nodes = dict.fromkeys([*ids, *(there or ())], "n")
    count = len(ids) if wanted is None else wanted
    return App("RUNNING", "", "d", count, frozenset(ids), None, nodes, frozenset(moving))


def looked(*apps, leaving=()):
    losses = Losses()
    for i, one in enumerate(apps):
        losses.look(one, 100.0 + i)
    return losses.count(leaving)


def test_what_went_by_itself_is_lost_and_what_was_sent_away_is_not():
    assert looked(app("ab"), app("bc")) == 1
    assert looked(app("abc"), app("a", wanted=1)) == 0
    assert looked(app("abc"), app("ab", wanted=1), app("a", wanted=1)) == 0
    assert looked(app("abc"), app("", wanted=2)) == 1, "one was sent away, two died together"
    assert looked(app("a"), app("", wanted=0)) == 0


def test_who_leaves_a_drained_node_or_is_recovered_is_not_lost():
    assert looked(app("ab"), app("b", wanted=2, there="a", moving="a"), app("bc")) == 0
    recovering = app("", wanted=2, there="ab")
    assert looked(app("ab"), recovering, app("ab")) == 0
    assert looked(app("ab"), app("bc"), leaving={"n"}) == 0


def test_an_application_out_of_sight_says_nothing():
    unseen = App("DEPLOYING", "", "", None)
    assert looked(app("ab"), unseen, None, app("ab")) == 0
    assert looked(app("ab"), unseen, app("bc")) == 1


@given(
    st.lists(st.tuples(st.floats(0.1, 400.0), st.sets(st.sampled_from("abcdef"))), max_size=20),
    st.sets(st.sampled_from(["n1", "n2"])),
)
def test_each_look_counts_a_node_once_and_nothing_for_longer_than_ten_minutes(looks, leaving):
    losses, now_s = Losses(), 0.0
    for elapsed_s, ids in looks:
        now_s += elapsed_s
        nodes = {one: "n1" if one in "abc" else "n2" for one in ids}
        before = len(losses.lost)
        new = losses.look(App("RUNNING", "", "d", 6, frozenset(ids), None, nodes), now_s)
        assert 0 <= new <= 2
        assert len(losses.lost) <= before + new
        assert all(at_s > now_s - WINDOW_S for at_s, _ in losses.lost)
        assert losses.count(leaving) <= losses.count(()) == len(losses.lost)
    assert losses.count({"n1", "n2"}) == 0
