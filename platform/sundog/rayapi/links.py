"""How fast processes that Ray placed on several nodes swap tensors: an all-reduce between them, timed.

Needs a torch process group. Places nothing and reports nothing.
"""

from __future__ import annotations

import statistics
from typing import Any

from sundog.clock import WALL

SMALL_BYTES = 4
_WARM_UPS, _ROUNDS = 2, 5


def median_s(size_bytes: int, device: str, group: Any = None) -> float:
    """Seconds of an all-reduce of so many bytes; the first ones, which open connections, left out.
    RuntimeError when a member is lost."""
    import torch
    import torch.distributed as dist

    data, took = torch.zeros(size_bytes // 4, device=device), []
    for _ in range(_WARM_UPS + _ROUNDS):
        dist.barrier(group=group)
        began_s = WALL.monotonic_s()
        dist.all_reduce(data, group=group)
        if device != "cpu":
            torch.cuda.synchronize()
        took.append(WALL.monotonic_s() - began_s)
    return statistics.median(took[_WARM_UPS:])


def bus_gbyte_s(members: int, size_bytes: int, seconds: float) -> float:
    """Bandwidth of the slowest link that an all-reduce of this size and time implies, as nccl-tests
    count it: 2(n-1)/n × size ÷ time."""
    return 2 * (members - 1) / members * size_bytes / seconds / 1e9
