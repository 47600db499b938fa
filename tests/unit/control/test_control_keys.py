"""Keys as control handles them, on a real store."""

import pytest

from sundog.clock import ManualClock
from sundog.control.keys import Keys
from sundog.errors import Conflict, NotFound
from sundog.security.authoriser import Identity, Refusal
from sundog.security.keys import KeyRing
from sundog.store import open_store


@pytest.fixture
def keys(tmp_path):
    clock = ManualClock(1000.0)
    store = open_store(f"sqlite:///{tmp_path}/c.db", clock=clock)
    made = Keys(store, store.acquire("t"), clock)
    made.clock, made.store = clock, store
    yield made
    store.close()


def may(keys, key):
    ring = KeyRing(keys.clock.now_s, keys.clock.monotonic_s)
    ring.update(keys.store.keys())
    verdict = ring.authorise([(b"authorization", b"Bearer " + key.encode())], "digits")
    assert isinstance(verdict, Identity | Refusal)
    return isinstance(verdict, Identity)


def test_a_key_is_shown_once_and_kept_as_a_hash(keys):
    made = keys.create("me", ["digits"], rate=5.0)
    assert may(keys, made["key"])
    [row] = keys.listing()
    assert (row["key_id"], row["scopes"], row["rate"]) == (made["key_id"], ["digits"], 5.0)
    assert made["key"] not in str(keys.listing()) + str(keys.store.keys()) + str(
        keys.store.events()
    )


def test_revoking(keys):
    made = keys.create("me")
    keys.revoke(made["key_id"])
    assert not may(keys, made["key"])
    with pytest.raises(NotFound, match="no key 'nope'"):
        keys.revoke("nope")


def test_only_a_dead_key_is_forgotten_and_the_last_one_opens_the_door(keys):
    made = keys.create("me")
    with pytest.raises(Conflict):
        keys.delete(made["key_id"])
    keys.revoke(made["key_id"])
    assert not may(keys, "nothing")
    keys.delete(made["key_id"])
    assert keys.listing() == []
    assert may(keys, "nothing")


def test_a_rotated_key_goes_on_for_a_while_beside_its_successor(keys):
    old = keys.create("me", ["digits"], rate=5.0)
    new = keys.rotate(old["key_id"], overlap_s=60)
    assert new["scopes"] == ["digits"]
    assert may(keys, old["key"])
    assert may(keys, new["key"])
    keys.clock.advance(61)
    assert not may(keys, old["key"])
    assert may(keys, new["key"])


def test_a_successor_lives_as_long_as_its_predecessor_was_made_for(keys):
    old = keys.create("me", ttl_s=1000.0)
    keys.clock.advance(900)
    new = keys.rotate(old["key_id"], overlap_s=50)
    assert new["expires_s"] == keys.clock.now_s() + 1000
    again = keys.rotate(old["key_id"], overlap_s=50)
    assert again["expires_s"] == new["expires_s"], "although the old one ends earlier by now"
    for_ever = keys.create("you")
    for _ in range(2):
        assert keys.rotate(for_ever["key_id"])["expires_s"] is None


def test_a_key_of_before_lifetimes_were_kept_is_rotated_for_as_long(keys):
    made = keys.create("me", ttl_s=1000.0)
    [document] = keys.store.keys()
    del document["body"]["ttl_s"]
    keys.store.put_key(keys._lease, document)
    keys.clock.advance(10)
    assert keys.rotate(made["key_id"])["expires_s"] == keys.clock.now_s() + 1000


def test_a_key_that_has_ended_has_no_successor(keys):
    old, revoked = keys.create("me", ttl_s=10.0), keys.create("you")
    keys.revoke(revoked["key_id"])
    keys.clock.advance(10)
    for made in (old, revoked):
        with pytest.raises(Conflict, match="has ended"):
            keys.rotate(made["key_id"])
    assert len(keys.listing()) == 2
