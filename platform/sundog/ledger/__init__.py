"""What was spent: append-only entries and their allocation. The only source of dollars spent."""

from sundog.ledger.cost import By, Line, cost
from sundog.ledger.entries import (
    Entry,
    FileLedger,
    Ledger,
    RootLedger,
    read_entries,
    read_root,
)

__all__ = [
    "By",
    "Entry",
    "FileLedger",
    "Ledger",
    "Line",
    "RootLedger",
    "cost",
    "read_entries",
    "read_root",
]
