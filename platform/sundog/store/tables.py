"""The tables, as SQLAlchemy models. Changing one means a new file in migrations/versions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON}


class LeaseRow(Base):
    """Who may write. `epoch` grows with every acquisition and is never given twice."""

    __tablename__ = "lease"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    epoch: Mapped[int] = mapped_column(Integer)
    holder: Mapped[str] = mapped_column(String(255))
    expires_s: Mapped[float] = mapped_column(Float)


class ServiceRow(Base):
    """A service as it is wanted and as it is; gone when it is undeployed."""

    __tablename__ = "services"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    spec: Mapped[dict[str, Any]]
    state: Mapped[dict[str, Any]]
    updated_s: Mapped[float] = mapped_column(Float)


class RevisionRow(Base):
    """What a service was at each change: the history that a rollback reads."""

    __tablename__ = "revisions"
    service: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    model: Mapped[str] = mapped_column(String(255))
    spec: Mapped[dict[str, Any]]
    reason: Mapped[str] = mapped_column(Text)
    created_s: Mapped[float] = mapped_column(Float)


class RolloutRow(Base):
    """A rollout, running or ended: plan, state, evidence and outcome are in the document."""

    __tablename__ = "rollouts"
    service: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    phase: Mapped[str] = mapped_column(String(31), index=True)
    document: Mapped[dict[str, Any]]
    updated_s: Mapped[float] = mapped_column(Float)


class ScalingRow(Base):
    """What the scaling decider remembers of one version of a service."""

    __tablename__ = "scaling"
    service: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[str] = mapped_column(String(31), primary_key=True)
    state: Mapped[dict[str, Any]]
    updated_s: Mapped[float] = mapped_column(Float)


class SnapshotRow(Base):
    """The last route snapshot, so that versions go on where a restarted control left off."""

    __tablename__ = "snapshots"
    kind: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    body: Mapped[dict[str, Any]]
    created_s: Mapped[float] = mapped_column(Float)


class EventRow(Base):
    """What happened, for people: kind, subject, and the fields of the decision."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at_s: Mapped[float] = mapped_column(Float, index=True)
    kind: Mapped[str] = mapped_column(String(63))
    subject: Mapped[str] = mapped_column(String(255), index=True)
    fields: Mapped[dict[str, Any]]


class KeyRow(Base):
    """An API key: its hash, never the key."""

    __tablename__ = "keys"
    key_id: Mapped[str] = mapped_column(String(31), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), index=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    body: Mapped[dict[str, Any]]
    created_s: Mapped[float] = mapped_column(Float)
    expires_s: Mapped[float | None] = mapped_column(Float)
    revoked_s: Mapped[float | None] = mapped_column(Float)
