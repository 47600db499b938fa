"""The scaling decider's memory as JSON, so that it survives a restart of the controller.

Writes format 1; refuses a newer one. Knows the shape of the state, not its meaning.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sundog.errors import Corrupt, FormatTooNew
from sundog.serving.demand import ServiceTime
from sundog.serving.forecast import Forecaster, Guess
from sundog.serving.scaling import State
from sundog.serving.warmth import Idle

FORMAT = 1


def to_json(state: State) -> dict[str, Any]:
    """Plain dicts, lists and numbers; a few kilobytes."""
    return {"format": FORMAT, **asdict(state)}


def from_json(data: dict[str, Any]) -> State:
    """The state that was written. FormatTooNew, or Corrupt where a field is missing or odd."""
    written = data.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise FormatTooNew(
            f"scaling state of format {written}", fix=f"this version reads format {FORMAT}"
        )
    try:
        return _read(data)
    except (KeyError, TypeError, ValueError) as fault:
        raise Corrupt(
            f"scaling state cannot be read: {fault!r}",
            fix="delete it; the decider starts without history",
        ) from fault


def _read(data: dict[str, Any]) -> State:
    past = data["forecaster"]
    guesses = tuple(Guess(**{**guess, "rises": tuple(guess["rises"])}) for guess in past["guesses"])
    idle = data["idle"]
    return State(
        at_s=float(data["at_s"]),
        born_s=float(data["born_s"]),
        service=ServiceTime(**data["service"]),
        bins=_pairs(data["bins"]),
        forecaster=Forecaster(
            guesses, _pairs(past["trust"]), _pairs(past["jumps"]), _pairs(past["peaks"])
        ),
        onsets=_pairs(data["onsets"]),
        wanted=tuple((float(at_s), int(count)) for at_s, count in data["wanted"]),
        idle=Idle(idle["since_s"], tuple(idle["gaps_s"])),
        count=int(data["count"]),
        reason=str(data["reason"]),
    )


def _pairs(rows: list[Any]) -> tuple[tuple[float, float], ...]:
    return tuple((float(first), float(second)) for first, second in rows)
