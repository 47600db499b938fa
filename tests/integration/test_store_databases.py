"""The store on SQLite and on a real PostgreSQL: migrations, the fence, and what is kept."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from sqlalchemy import inspect

from sundog.clock import ManualClock
from sundog.errors import FormatTooNew, LeaseHeld, LeaseLost, StorageUnavailable
from sundog.rayapi.local import free_ports
from sundog.store import Store, open_store
from sundog.store.lease import TTL_S
from sundog.store.tables import Base


def postgres_folder() -> Path | None:
    """Where PostgreSQL's server programs are: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if (p / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """A PostgreSQL server of our own: free port, loopback, temporary data, not run by root."""
    programs = postgres_folder()
    if programs is None:
        pytest.skip("no PostgreSQL server programs here (Debian: apt-get install postgresql)")
    folder = tmp_path_factory.mktemp("pg")
    run_as = None
    if os.geteuid() == 0:
        run_as = next((u for u in ("postgres", "nobody") if _has_user(u)), None)
        if run_as is None:
            pytest.skip("PostgreSQL refuses to run as root and there is no other user")
        shutil.chown(folder, run_as)
        for parent in folder.parents:
            if str(parent).startswith("/tmp/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    [port] = free_ports(1)
    data = folder / "data"
    environment = {**os.environ, "HOME": str(folder), "LC_ALL": "C"}
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "sundog", "-A", "trust", "--no-sync"],
        check=True, capture_output=True, user=run_as, env=environment, cwd=folder,
    )  # fmt: skip
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    control = [programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options]

    def pg_ctl(*words: str) -> None:
        subprocess.run(
            [*control, *words], check=words == ("start",), stdout=subprocess.DEVNULL,
            user=run_as, env=environment, cwd=folder,
        )  # fmt: skip

    pg_ctl("start")
    try:
        yield f"postgresql://sundog@127.0.0.1:{port}/postgres"
    finally:
        pg_ctl("-m", "immediate", "stop")


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deep/control.db"
    base = request.getfixturevalue("postgres")
    import psycopg

    name = f"t{abs(hash(request.node.name)) % 10**9}"
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return base.rpartition("/")[0] + f"/{name}"


def test_what_is_written_is_there_after_reopening(url):
    store = open_store(url)
    lease = store.acquire("a")
    store.put_service(lease, "digits", {"model": "digits@1"}, {"active": "1"})
    store.put_service(lease, "digits", {"model": "digits@2"}, {"active": "2"})
    assert store.add_revision(lease, "digits", "digits@1", {}, "first") == 1
    assert store.add_revision(lease, "digits", "digits@2", {}, "second") == 2
    store.put_snapshot(lease, "routes", 7, {"services": {}})
    store.add_event(lease, "service.state", "digits", {"state": "ready"})
    store.close()

    store = open_store(url)
    assert store.services() == {"digits": ({"model": "digits@2"}, {"active": "2"})}
    assert [r["reason"] for r in store.revisions("digits")] == ["first", "second"]
    assert store.snapshot("routes") == (7, {"services": {}})
    assert store.snapshot("nothing") == (0, {})
    assert store.events("digits")[0]["fields"] == {"state": "ready"}
    store.delete_service(store.acquire("a"), "digits")
    assert store.services() == {}
    store.close()


def test_the_migrations_come_to_the_tables_of_the_models(url):
    store = open_store(url)
    tables = set(inspect(store._engine).get_table_names())
    assert tables == set(Base.metadata.tables) | {"alembic_version"}
    store.close()


def test_a_live_lease_is_not_taken_and_an_expired_one_is(url):
    clock = ManualClock(1000)
    first, second = open_store(url, clock=clock), open_store(url, clock=clock)
    lease = first.acquire("a")
    with pytest.raises(LeaseHeld, match="another control, a"):
        second.acquire("b")
    clock.advance(TTL_S - 1)
    first.renew(lease)
    clock.advance(TTL_S - 1)
    with pytest.raises(LeaseHeld):
        second.acquire("b")
    clock.advance(2)
    taken = second.acquire("b")
    assert taken.epoch > lease.epoch


def test_a_stale_holder_writes_nothing(url):
    clock = ManualClock(1000)
    first, second = open_store(url, clock=clock), open_store(url, clock=clock)
    stale = first.acquire("a")
    clock.advance(TTL_S + 1)
    fresh = second.acquire("b")
    writes = [
        lambda: first.put_service(stale, "x", {}, {}),
        lambda: first.delete_service(stale, "x"),
        lambda: first.add_revision(stale, "x", "m@1", {}, ""),
        lambda: first.put_snapshot(stale, "routes", 9, {}),
        lambda: first.add_event(stale, "k", "s", {}),
        lambda: first.renew(stale),
    ]
    second.put_service(fresh, "x", {"by": "b"}, {})
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert second.services() == {"x": ({"by": "b"}, {})}
    assert second.snapshot("routes") == (0, {})
    assert second.events() == []


def test_the_dead_and_the_released_make_way_at_once(url):
    store = open_store(url)
    store.acquire("a")
    assert store.acquire("b", is_dead=lambda holder: holder == "a").epoch == 2
    lease = store.acquire("b")
    store.release(lease)
    assert store.acquire("c").epoch == 4


def test_of_many_that_reach_for_the_lease_one_gets_it(url):
    stores = [open_store(url) for _ in range(8)]
    got: list[str] = []

    def reach(name: str, store: Store) -> None:
        try:
            store.acquire(name)
            got.append(name)
        except LeaseHeld:
            pass
        finally:
            store.close()

    threads = [threading.Thread(target=reach, args=(f"h{i}", s)) for i, s in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_a_schema_of_a_later_sundog_is_refused(url):
    from sqlalchemy import text

    store = open_store(url)
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(FormatTooNew):
        open_store(url)


def test_migrations_build_what_the_models_say(url):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from sundog.store.tables import Base

    store = open_store(url)
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    store.close()


@pytest.mark.parametrize(
    "address", ["mysql://x/y", "nonsense", "sqlite://", "postgresql://u:secret@127.0.0.1:1/db"]
)
def test_a_store_that_cannot_be_opened_says_so_without_its_password(address):
    with pytest.raises(StorageUnavailable) as caught:
        open_store(address)
    assert "secret" not in str(caught.value)
    assert caught.value.fix


def test_rollouts_and_scaling_are_kept_replaced_and_listed_newest_first(url):
    clock = ManualClock(1000.0)
    store = open_store(url, clock=clock)
    try:
        lease = store.acquire("a")
        store.put_rollout(lease, "s", 1, "promoted", {"weights": {"2": 1.0, "1": 0.0}})
        clock.advance(1.0)
        store.put_rollout(lease, "s", 2, "warming", {"n": 1})
        store.put_rollout(lease, "s", 2, "stepping", {"n": 2})
        store.put_rollout(lease, "t", 1, "aborted", {})
        rows = store.rollouts("s")
        assert [(r["number"], r["phase"]) for r in rows] == [(2, "stepping"), (1, "promoted")]
        assert rows[0]["document"] == {"n": 2}
        assert list(rows[1]["document"]["weights"]) == ["2", "1"], "the candidate stays first"
        store.put_scaling(lease, "s", "1", {"count": 1})
        store.put_scaling(lease, "s", "1", {"count": 3})
        assert store.scaling() == {("s", "1"): {"count": 3}}
        later = store.acquire("b", lambda holder: True)
        with pytest.raises(LeaseLost):
            store.put_rollout(lease, "s", 2, "promoted", {})
        with pytest.raises(LeaseLost):
            store.put_scaling(lease, "s", "1", {})
        store.delete_service(later, "s")
        assert store.scaling() == {}
        assert store.rollouts("s"), "history stays"
    finally:
        store.close()
