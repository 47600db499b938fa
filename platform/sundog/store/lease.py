"""The fenced lease: at most one writer, and a writer that lost it without noticing writes nothing.

Every write transaction first reads the lease row under a lock and compares its epoch (the fencing
token of Kleppmann, 2016), so that a paused process cannot overwrite its successor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from sundog.errors import LeaseHeld, LeaseLost
from sundog.store.tables import LeaseRow

NAME = "control"
TTL_S = 10.0


@dataclass(frozen=True)
class Lease:
    holder: str
    epoch: int


def acquire(
    session: Session, holder: str, now_s: float, is_dead: Callable[[str], bool] = lambda _: False
) -> Lease:
    """Take the lease, with a fresh epoch. Raises LeaseHeld while another holder's is alive.

    The same holder takes it again at once (an actor that Ray restarted), and so does anybody when
    `is_dead` knows that the holder's process is gone.
    """
    row = _locked(session)
    if row is None:
        row = LeaseRow(name=NAME, epoch=0, holder="", expires_s=0.0)
        session.add(row)
    elif row.holder not in ("", holder) and row.expires_s > now_s and not is_dead(row.holder):
        raise LeaseHeld(
            f"the store is written by another control, {row.holder}",
            f"stop it, or wait {row.expires_s - now_s:.0f} s after it has ended; "
            "two clusters need two stores",
        )
    row.epoch += 1
    row.holder = holder
    row.expires_s = now_s + TTL_S
    return Lease(holder, row.epoch)


def renew(session: Session, lease: Lease, now_s: float) -> None:
    row = check(session, lease)
    row.expires_s = now_s + TTL_S


def release(session: Session, lease: Lease) -> None:
    row = _locked(session)
    if row is not None and row.epoch == lease.epoch:
        row.holder = ""
        row.expires_s = 0.0


def check(session: Session, lease: Lease) -> LeaseRow:
    """The fence: raises LeaseLost unless `lease` is the newest. Locks the row until commit."""
    row = _locked(session)
    if row is None or row.epoch != lease.epoch:
        raise LeaseLost(
            f"this control lost the store's lease (epoch {lease.epoch}, "
            f"now {row.epoch if row else 'none'})",
            "another control took over; this one must stop",
        )
    return row


def _locked(session: Session) -> LeaseRow | None:
    return session.scalars(select(LeaseRow).where(LeaseRow.name == NAME).with_for_update()).first()
