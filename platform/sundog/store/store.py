"""The store: opening it, its migrations, and every read and fenced write that control makes.

Only the control actor opens it. Values go in and come out as plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, delete, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from sundog.clock import WALL, Clock
from sundog.errors import FormatTooNew, StorageUnavailable
from sundog.store import lease as leases
from sundog.store.lease import Lease
from sundog.store.tables import (
    EventRow,
    KeyRow,
    RevisionRow,
    RolloutRow,
    ScalingRow,
    ServiceRow,
    SnapshotRow,
)

_BUSY_TIMEOUT_S = 10


def open_store(url: str, *, clock: Clock = WALL) -> Store:
    """Open (and migrate) the store at a URL: `sqlite:////abs/path` or `postgresql://…`.

    Raises StorageUnavailable, or FormatTooNew for a store that a later Sundog wrote.
    """
    engine = _engine(url)
    try:
        _migrate(engine)
    except SQLAlchemyError as error:
        raise StorageUnavailable(
            f"the store {shown(url)} cannot be opened: {getattr(error, 'orig', error)}",
            "is the database running, and does the URL name it?",
        ) from None
    return Store(engine, clock)


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "<url>"


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StorageUnavailable(
            "the store's URL cannot be read",
            "write sqlite:////absolute/path.db or postgresql://user@host/database",
        ) from None
    if parsed.get_backend_name() == "postgresql":
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            connect_args={"client_encoding": "utf8", "connect_timeout": _BUSY_TIMEOUT_S},
        )
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise StorageUnavailable(
            f"{shown(url)} is neither SQLite in a file nor PostgreSQL",
            "write sqlite:////absolute/path.db or postgresql://user@host/database",
        )
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def _sqlite_connect(connection: Any, _: Any) -> None:
    # Let SQLAlchemy, not the driver, begin transactions: a write lock is taken at the beginning.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _sqlite_begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "sundog.store:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise FormatTooNew(
                f"the store has a schema that this Sundog does not know: {error}",
                "install the Sundog that wrote it",
            ) from None


class Store:
    """Reads are free; every write takes the caller's lease and is refused when it is stale."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with _typed(), Session(self._engine) as session:
            yield session

    @contextmanager
    def _writing(self, lease: Lease) -> Iterator[Session]:
        with _typed(), Session(self._engine) as session, session.begin():
            leases.check(session, lease)
            yield session

    # -- the lease

    def acquire(self, holder: str, is_dead: Callable[[str], bool] = lambda _: False) -> Lease:
        with _typed():
            try:
                return self._acquire(holder, is_dead)
            except IntegrityError:
                # Two took the very first lease at once. The other one's row is there now.
                return self._acquire(holder, is_dead)

    def _acquire(self, holder: str, is_dead: Callable[[str], bool]) -> Lease:
        with Session(self._engine) as session, session.begin():
            return leases.acquire(session, holder, self._clock.now_s(), is_dead)

    def renew(self, lease: Lease) -> None:
        with _typed(), Session(self._engine) as session, session.begin():
            leases.renew(session, lease, self._clock.now_s())

    def release(self, lease: Lease) -> None:
        with _typed(), Session(self._engine) as session, session.begin():
            leases.release(session, lease)

    # -- services

    def services(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """name -> (spec, state)."""
        with self._reading() as session:
            return {r.name: (r.spec, r.state) for r in session.scalars(select(ServiceRow))}

    def put_service(
        self, lease: Lease, name: str, spec: dict[str, Any], state: dict[str, Any]
    ) -> None:
        with self._writing(lease) as session:
            session.merge(
                ServiceRow(name=name, spec=spec, state=state, updated_s=self._clock.now_s())
            )

    def delete_service(self, lease: Lease, name: str) -> None:
        """Forget the service; its revisions, rollouts and events stay."""
        with self._writing(lease) as session:
            session.execute(delete(ServiceRow).where(ServiceRow.name == name))
            session.execute(delete(ScalingRow).where(ScalingRow.service == name))

    def add_revision(
        self, lease: Lease, service: str, model: str, spec: dict[str, Any], reason: str
    ) -> int:
        with self._writing(lease) as session:
            last = session.scalar(
                select(func.max(RevisionRow.number)).where(RevisionRow.service == service)
            )
            number = (last or 0) + 1
            session.add(
                RevisionRow(
                    service=service, number=number, model=model, spec=spec, reason=reason,
                    created_s=self._clock.now_s(),
                )
            )  # fmt: skip
            return number

    def revisions(self, service: str) -> list[dict[str, Any]]:
        """Oldest first: {number, model, spec, reason, created_s}."""
        query = select(RevisionRow).where(RevisionRow.service == service)
        with self._reading() as session:
            return [
                {"number": r.number, "model": r.model, "spec": r.spec, "reason": r.reason,
                 "created_s": r.created_s}
                for r in session.scalars(query.order_by(RevisionRow.number))
            ]  # fmt: skip

    # -- rollouts and scaling

    def put_rollout(
        self, lease: Lease, service: str, number: int, phase: str, document: dict[str, Any]
    ) -> None:
        with self._writing(lease) as session:
            session.merge(
                RolloutRow(
                    service=service, number=number, phase=phase, document=document,
                    updated_s=self._clock.now_s(),
                )
            )  # fmt: skip

    def rollouts(self, service: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Newest first: {service, number, phase, updated_s, document}."""
        query = select(RolloutRow).order_by(RolloutRow.updated_s.desc(), RolloutRow.number.desc())
        if service is not None:
            query = query.where(RolloutRow.service == service)
        with self._reading() as session:
            return [
                {"service": r.service, "number": r.number, "phase": r.phase,
                 "updated_s": r.updated_s, "document": r.document}
                for r in session.scalars(query.limit(limit))
            ]  # fmt: skip

    def put_scaling(self, lease: Lease, service: str, version: str, state: dict[str, Any]) -> None:
        with self._writing(lease) as session:
            session.merge(
                ScalingRow(
                    service=service, version=version, state=state, updated_s=self._clock.now_s()
                )
            )

    def scaling(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(service, version) -> the state that was put."""
        with self._reading() as session:
            return {(r.service, r.version): r.state for r in session.scalars(select(ScalingRow))}

    # -- snapshots

    def snapshot(self, kind: str) -> tuple[int, dict[str, Any]]:
        """(version, body) of the last snapshot of a kind; (0, {}) before the first."""
        with self._reading() as session:
            row = session.get(SnapshotRow, kind)
            return (row.version, row.body) if row else (0, {})

    def put_snapshot(self, lease: Lease, kind: str, version: int, body: dict[str, Any]) -> None:
        with self._writing(lease) as session:
            session.merge(
                SnapshotRow(kind=kind, version=version, body=body, created_s=self._clock.now_s())
            )

    # -- events, keys

    def add_event(self, lease: Lease, kind: str, subject: str, fields: dict[str, Any]) -> None:
        with self._writing(lease) as session:
            session.add(
                EventRow(at_s=self._clock.now_s(), kind=kind, subject=subject, fields=fields)
            )

    def events(self, subject: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Newest first: {id, at_s, kind, subject, fields}."""
        query = select(EventRow).order_by(EventRow.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(EventRow.subject == subject)
        with self._reading() as session:
            return [
                {"id": r.id, "at_s": r.at_s, "kind": r.kind, "subject": r.subject,
                 "fields": r.fields}
                for r in session.scalars(query)
            ]  # fmt: skip

    def put_key(self, lease: Lease, key: dict[str, Any]) -> None:
        """{key_id, name, hash, body, created_s, expires_s, revoked_s}; `hash`, never the key."""
        with self._writing(lease) as session:
            session.merge(KeyRow(**key))

    def delete_key(self, lease: Lease, key_id: str) -> None:
        with self._writing(lease) as session:
            session.execute(delete(KeyRow).where(KeyRow.key_id == key_id))

    def keys(self) -> list[dict[str, Any]]:
        with self._reading() as session:
            return [
                {"key_id": r.key_id, "name": r.name, "hash": r.hash, "body": r.body,
                 "created_s": r.created_s, "expires_s": r.expires_s, "revoked_s": r.revoked_s}
                for r in session.scalars(select(KeyRow).order_by(KeyRow.created_s))
            ]  # fmt: skip


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StorageUnavailable(
            f"the store does not answer: {getattr(error, 'orig', None) or error}",
            "is the database running, and is its disk not full?",
        ) from None
