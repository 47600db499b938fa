"""Two things that a run's worker groups share from the first to the last: the training function, and
Train's synchronization actor. Train makes both anew, or fetches them, at the worst moment.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import ray
from ray import cloudpickle


class Carried:
    """The training function, by value. Train's own way, a reference into the object store, makes a
    newcomer ask for a copy at a node that is gone, and wait 10 s (then 20, then 40) to ask again."""

    def __init__(self, train_fn: Callable[[], Any]) -> None:
        self._bytes = cloudpickle.dumps(train_fn)

    def get(self) -> Callable[[], Any]:
        train_fn: Callable[[], Any] = pickle.loads(self._bytes)  # noqa: S301 - our own driver's
        return train_fn


def new_sync_actor() -> Any:
    """Where workers that call `ray.train.report` meet: on the node of whoever asks, which lives as
    long as the run does."""
    from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor

    here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
    beside_us = SynchronizationActor.options(num_cpus=0, label_selector=here)
    return beside_us.remote(timeout_s=None, warn_interval_s=60.0)
