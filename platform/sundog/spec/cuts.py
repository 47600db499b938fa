"""Into how many micro-batches a run's batch is cut: fixed for the run, whatever its size at the time."""

from __future__ import annotations

_EXACT = 8  # so that an exact curve does not change as long as a range stays below
_DEAREST = 4  # times as many passes as were asked for


def micro_batches(
    batch: int, micro_batch: int | None, most_workers: int, exact: bool = True
) -> int:
    """Eight, or the next number that divides the batch and gives every worker at least one. Where no
    exact curve is promised one for each of the most workers: every cut costs a pass.

    ValueError, with the way out, where the batch cannot be cut so.
    """
    if batch < most_workers:
        raise ValueError(
            f"batch {batch} has fewer rows than the run may have workers ({most_workers}): "
            f"write batch: {most_workers} or more"
        )
    if micro_batch is not None:
        if batch % micro_batch:
            near = next(m for m in range(micro_batch, 0, -1) if batch % m == 0)
            raise ValueError(f"micro_batch {micro_batch} does not divide batch {batch}; try {near}")
        count = batch // micro_batch
        if count < most_workers:
            raise ValueError(
                f"batch {batch} in micro-batches of {micro_batch} makes {count} of them, too few for "
                f"{most_workers} workers: write micro_batch: {batch // most_workers} or less"
            )
        return count
    least = min(batch, max(_EXACT, most_workers) if exact else most_workers)
    count = next(n for n in range(least, batch + 1) if batch % n == 0)
    if count > _DEAREST * least:
        raise ValueError(
            f"batch {batch} can only be cut into {count} micro-batches of {batch // count} rows: "
            f"write batch: {-(-batch // least) * least}, which can be cut into {least}"
        )
    return count
