"""Summing micro-batches by one fixed binary tree, so that a sum has the same bits at any world size.

Knows which partial sums a worker makes and in which order they are added. Moves nothing over a wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Node:
    """The subtree over the leaves `[start, stop)`."""

    start: int
    stop: int

    @property
    def leaf(self) -> bool:
        return self.stop - self.start == 1

    def children(self) -> tuple[Node, Node]:
        """The left child is the largest power of two that leaves something to the right."""
        middle = self.start + (1 << ((self.stop - self.start - 1).bit_length() - 1))
        return Node(self.start, middle), Node(middle, self.stop)


def partials(count: int, start: int, stop: int) -> list[Node]:
    """The fewest whole subtrees of the tree over `count` leaves that cover `[start, stop)`."""
    out: list[Node] = []
    _cover(Node(0, count), start, stop, out)
    return out


def _cover(node: Node, start: int, stop: int, out: list[Node]) -> None:
    if stop <= node.start or node.stop <= start:
        return
    if start <= node.start and node.stop <= stop:
        out.append(node)
        return
    for child in node.children():
        _cover(child, start, stop, out)


def add_up(root: Node, known: Mapping[Node, T], add: Callable[[T, T], T]) -> T:
    """The value of `root`, from subtrees that are known. KeyError when some leaf is in none."""
    if root in known:
        return known[root]
    if root.leaf:
        raise KeyError(f"micro-batch {root.start} is in no partial sum")
    left, right = root.children()
    return add(add_up(left, known, add), add_up(right, known, add))
