"""Three times what a service can do: goodput stays, who is let in is in time, the rest hear no at once."""

from __future__ import annotations

import asyncio
import time

import pytest
from gateway_kit import Served, gateway_of, tensors

from sundog.serving.open_load import OpenLoad, zeros

CALL_S = 0.04
BATCH = 4
CAPACITY = BATCH / CALL_S
SLO_S = 1.0
INPUTS = tensors(("x", "FP32", (-1, 4)))


class Slow:
    """As slow on a busy machine as on an idle one, so that its capacity is known."""

    def predict(self, inputs):
        time.sleep(CALL_S)
        return {"y": inputs["x"]}


@pytest.fixture(scope="module")
def gateway():
    signature = {"inputs": INPUTS, "outputs": tensors(("y", "FP32", (-1, 4)))}
    limits = {"batch": BATCH, "slo_s": SLO_S, "deadline_s": 10}
    with gateway_of({"slow": Served(Slow(), signature, limits)}) as running:
        yield running.url


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(12.0, marks=pytest.mark.slow), pytest.param(60.0, marks=pytest.mark.long)],
)
def test_three_times_the_capacity(gateway, seconds):
    async def loads():
        load = OpenLoad(gateway, "/v2/models/slow/infer", zeros(INPUTS))
        peak = await load.run(1.2 * CAPACITY, 4.0)
        over = await load.run(3 * CAPACITY, seconds)
        after = await load.run(0.3 * CAPACITY, 3.0)
        load.close()
        return peak, over, after

    peak, over, after = asyncio.run(loads())
    assert {s.status for s in over.sent} <= {200, 429, 503}
    good = [s for s in over.sent if s.status == 200]
    refused = [s for s in over.sent if s.status != 200]
    assert over.answered_rate >= 0.9 * peak.answered_rate
    assert len(refused) > len(over.sent) / 2, "the load was beyond the capacity"
    in_time = [s for s in good if s.latency_s <= SLO_S]
    assert len(in_time) >= 0.95 * len(good)
    # At once: a no does not wait in any queue. (In the median: a pause of the machine is not ours.)
    assert sorted(s.latency_s for s in refused)[len(refused) // 2] < SLO_S / 4
    assert after.failed == 0, "it is over as soon as the load is"
