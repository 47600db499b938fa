"""The rules of leases: nothing is ever given twice, and whoever asks gets what nobody uses."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sundog.security.leases import Holding, Share, first_lease, lease, share

STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),  # which gateway
        st.integers(0, 40),  # how many requests come there
        st.booleans(),  # whether control's answer reaches it
    ),
    max_size=60,
)


class Town:
    """Gateways that spend up to their limit, and the books that control keeps of them."""

    def __init__(self, quota, gateways=3):
        self.quota = quota
        self.spent = [0] * gateways
        self.limit = [0] * gateways
        self.books = {}

    def step(self, g, asked, heard=True):
        done = min(asked, max(0, self.limit[g] - self.spent[g]))
        self.spent[g] += done
        self.books[str(g)] = Holding(self.spent[g], self.limit[g], float(asked))
        given = lease(self.quota, self.books, str(g))
        held = max(self.limit[g], given.limit)
        self.books[str(g)] = Holding(self.spent[g], held, float(asked))
        if heard:
            self.limit[g] = given.limit
        return done


@given(st.integers(0, 500), STEPS)
def test_a_quota_is_never_exceeded_whatever_answers_are_lost(quota, steps):
    town = Town(quota)
    for step in steps:
        town.step(*step)
        assert sum(town.spent) <= quota
        assert sum(h.held for h in town.books.values()) <= quota


@given(st.integers(1, 300), STEPS)
@settings(max_examples=50)
def test_one_gateway_can_use_all_that_the_others_leave(quota, steps):
    town = Town(quota)
    for step in steps:
        town.step(*step)
    for _ in range(200):
        for g, asked in ((1, 0), (2, 0), (0, 30)):  # the idle ones report too
            town.step(g, asked)
    assert sum(town.spent) == quota


@given(st.integers(1, 10_000), st.lists(st.integers(0, 500), min_size=1, max_size=5))
def test_the_gone_count_with_what_they_spent_and_the_reserve_shares_what_is_left(quota, spent):
    books = {str(i): Holding(n, n, live=False) for i, n in enumerate(spent)}
    books["me"] = Holding(0, first_lease(quota), 5.0)
    given = lease(quota, books, "me")
    assert given.left == max(0, quota - sum(spent))
    assert given.limit <= given.reserve == given.left


def test_a_credit_for_what_was_counted_twice_can_be_spent():
    books = {"a": Holding(10, 10), "b": Holding(1, 1, 3.0)}
    assert lease(11, books, "b").limit == 1
    assert lease(11, books, "b", credit=1).limit == 2


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e4), st.booleans()), max_size=60),
)
def test_shares_of_a_rate_never_exceed_the_whole(steps):
    applied, books = [0.25] * 4, {str(i): Share(0.25, 0.0) for i in range(4)}
    for g, demand, heard in steps:
        books[str(g)] = Share(applied[g], demand)
        given = share(books, str(g))
        books[str(g)] = Share(max(applied[g], given), demand)
        if heard:
            applied[g] = given
        assert sum(applied) <= 1 + 1e-9
        assert given >= 0


def test_a_rate_goes_where_it_is_asked_for_and_an_idle_gateway_keeps_a_little():
    books = {"busy": Share(0.5, 90.0), "idle": Share(0.5, 0.0)}
    for _ in range(3):
        for who in ("idle", "busy"):
            books[who] = Share(share(books, who), books[who].demand)
    assert books["busy"].held == 0.95
    assert 0 < books["idle"].held <= 0.05 + 1e-9
