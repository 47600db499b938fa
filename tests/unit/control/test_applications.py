"""Services as Serve applications: what a replica asks of its node."""

from __future__ import annotations

import pytest

from sundog.control.applications import model_app
from sundog.rayapi.train_nodes import MARKET
from sundog.spec import ServiceSpec

PLACE = {"root": "file:///r", "name": "m", "version": 1, "allow_code": False}
POOL = {"sundog.pool": "web"}


def options(**resources):
    document = {"service": "s", "model": "m@1", "resources": resources}
    app = model_app(ServiceSpec.model_validate(document), dict(PLACE))
    return app._bound_deployment.ray_actor_options


@pytest.mark.parametrize(
    ("resources", "selector", "fallback"),
    [
        ({}, None, None),
        ({"labels": POOL}, POOL, None),
        ({"market": "on-demand"}, {MARKET: "on-demand"}, None),
        ({"market": "spot-only", "labels": POOL}, {**POOL, MARKET: "spot"}, None),
        ({"market": "spot-first"}, {MARKET: "spot"}, [{"label_selector": {}}]),
        ({"market": "spot-first", "labels": POOL}, {**POOL, MARKET: "spot"},
         [{"label_selector": POOL}]),
    ],
)  # fmt: skip
def test_a_replica_is_placed_by_market_and_labels(resources, selector, fallback):
    asked = options(**resources)
    assert asked.get("label_selector") == selector
    assert asked.get("fallback_strategy") == fallback


def test_a_part_of_a_gpu_of_a_kind():
    asked = options(gpus=0.25, gpu="L4")
    assert (asked["num_gpus"], asked["accelerator_type"]) == (0.25, "L4")
