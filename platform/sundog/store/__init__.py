"""The one durable state: intent and progress, in SQLite or PostgreSQL, written under one lease."""

from sundog.store.lease import Lease
from sundog.store.store import Store, open_store

__all__ = ["Lease", "Store", "open_store"]
