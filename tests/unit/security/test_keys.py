"""API keys: who gets in, with what, how often, and until when."""

import pytest

from sundog.security.authoriser import Identity, Refusal
from sundog.security.keys import KeyRing, hash_of, new_key, record_of


class Time:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


def ring(time, *records):
    made = KeyRing(time, time)
    made.update(r.document() for r in records)
    return made


def bearer(key):
    return [(b"host", b"x"), (b"authorization", b"Bearer " + key.encode())]


def test_without_any_key_nobody_is_asked(time):
    assert ring(time).authorise([], "digits") == Identity("")


def test_a_key_opens_and_its_absence_or_another_does_not(time):
    key, record = new_key("me", 1000.0)
    keys = ring(time, record)
    for _ in range(2):
        assert keys.authorise(bearer(key), "digits") == Identity(record.key_id)
    assert keys.authorise([(b"x-api-key", key.encode())], "digits") == Identity(record.key_id)
    for headers in ([], bearer(key + "x"), bearer("sd_"), [(b"authorization", b"Basic abc")]):
        refusal = keys.authorise(headers, "digits")
        assert isinstance(refusal, Refusal)
        assert refusal.status == 401


def test_what_is_kept_is_no_key(time):
    key, record = new_key("me", 1000.0)
    assert key not in str(record.document())
    assert record.hash == hash_of(key.encode())
    assert record_of(record.document()) == record


def test_a_key_is_for_its_services_only(time):
    key, record = new_key("me", 1000.0, scopes=["digits", "team-*"])
    keys = ring(time, record)
    assert isinstance(keys.authorise(bearer(key), "team-a"), Identity)
    refusal = keys.authorise(bearer(key), "other")
    assert refusal.status == 403
    assert key not in refusal.message


def test_who_asks_for_no_service_is_told_what_they_may_see_and_is_not_counted(time):
    key, record = new_key("me", 1000.0, scopes=["digits", "team-*"], rate=1.0, quota=1000)
    keys = ring(time, record)
    for _ in range(10):
        seen = keys.authorise(bearer(key), "")
    assert [seen.may(s) for s in ("digits", "team-a", "other")] == [True, True, False]
    assert (seen.sees_all, seen.counted) == (False, False)
    assert keys.authorise(bearer(key), "digits").counted
    assert ring(time).authorise([], "").sees_all


def test_a_refusal_says_whose_key_it_was(time):
    key, record = new_key("me", 1000.0, scopes=["digits"], rate=1.0, ttl_s=10)
    keys = ring(time, record)
    keys.authorise(bearer(key), "digits")
    for service, status in (("other", 403), ("digits", 429)):
        refusal = keys.authorise(bearer(key), service)
        assert (refusal.status, refusal.key_id) == (status, record.key_id)
    time.now += 10
    assert keys.authorise(bearer(key), "digits").key_id == record.key_id
    assert keys.authorise(bearer("sd_else"), "digits").key_id == ""


def test_a_key_ends_when_it_expires_or_is_revoked(time):
    from dataclasses import replace

    key, record = new_key("me", 1000.0, ttl_s=10)
    keys = ring(time, record)
    assert isinstance(keys.authorise(bearer(key), "a"), Identity)
    time.now = 1010.0
    assert "expired" in keys.authorise(bearer(key), "a").message
    keys.update([replace(record, expires_s=None, revoked_s=1005.0).document()])
    assert "revoked" in keys.authorise(bearer(key), "a").message
    assert isinstance(keys.authorise([], "a"), Refusal), "revoking the last key opens nothing"


def test_a_rate_lets_a_burst_through_and_then_says_when_to_come_back(time):
    key, record = new_key("me", 1000.0, rate=2.0, burst=3.0)
    keys = ring(time, record)
    assert [type(keys.authorise(bearer(key), "a")) for _ in range(4)] == [Identity] * 3 + [Refusal]
    refusal = keys.authorise(bearer(key), "a")
    assert (refusal.status, refusal.retry_after_s) == (429, 0.5)
    time.now += 0.5
    assert isinstance(keys.authorise(bearer(key), "a"), Identity)
    keys.update([record.document()])
    assert isinstance(keys.authorise(bearer(key), "a"), Refusal), "a snapshot refills nothing"


def test_two_keys_do_not_share_a_rate(time):
    (a, ra), (b, rb) = (new_key(n, 1000.0, rate=1.0) for n in "ab")
    keys = ring(time, ra, rb)
    assert isinstance(keys.authorise(bearer(a), "s"), Identity)
    assert isinstance(keys.authorise(bearer(b), "s"), Identity)
    assert isinstance(keys.authorise(bearer(a), "s"), Refusal)
