"""Replicas that went without anybody's wish: counted per version, nodes that left apart. Pure.

One node that dies takes all its replicas at once and says nothing of the version that ran there, so
what goes from one node between two looks counts once, and not at all when that node is leaving.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from sundog.control.serving_plan import App

WINDOW_S = 600.0
"""How long a lost replica counts."""


@dataclass
class Losses:
    """Of one version. `lost`: [when, node], oldest first; plain data for the store."""

    lost: list[tuple[float, str]] = field(default_factory=list)
    running: frozenset[str] = frozenset()
    nodes: dict[str, str] = field(default_factory=dict)
    moving: frozenset[str] = frozenset()

    def look(self, app: App | None, now_s: float) -> int:
        """One more look at the version's application: how many more are lost."""
        if app is None or app.replicas is None:
            return 0  # a redeployed application shows no deployment for a moment
        gone = sorted(self.running - app.replica_ids - set(app.nodes) - self.moving)
        # Fewer by wish: Serve chooses which, and it may have chosen any of these.
        gone = gone[max(0, len(self.running) - app.replicas) :]
        nodes = sorted({self.nodes.get(one, "") for one in gone})
        self.lost += [(now_s, node) for node in nodes]
        self.lost = [one for one in self.lost if one[0] > now_s - WINDOW_S]
        self.running, self.nodes, self.moving = app.replica_ids, dict(app.nodes), app.moving
        return len(nodes)

    def count(self, leaving: Collection[str]) -> int:
        """Losses of the last ten minutes on nodes that are not `leaving` (drained or dead)."""
        return sum(1 for _, node in self.lost if not node or node not in leaving)
