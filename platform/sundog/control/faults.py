"""Services kept apart: what fails at one of them is said there and tried again; the others go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sundog.clock import Clock
from sundog.errors import LeaseLost, SundogError

WAIT_S = 2.0
"""A service that control failed at is left alone for so long: a storage that hangs delays others."""

log = logging.getLogger("sundog.control")


class Faults:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._faults: dict[str, tuple[str, float]] = {}

    @contextmanager
    def apart(self, name: str) -> Iterator[bool]:
        """Takes whatever is raised inside, a lost lease apart. False while the service is left alone."""
        before, until_s = self._faults.get(name, ("", 0.0))
        if self._clock.monotonic_s() < until_s:
            yield False
            return
        try:
            yield True
        except LeaseLost:
            raise
        except SundogError as error:
            fault = str(error)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
            if fault != before:  # not its stack trace every two seconds
                log.exception("control failed at service %s", name)
        else:
            self._faults.pop(name, None)
            return
        if fault != before:
            log.warning("service %s is left as it is for now: %s", name, fault)
        self._faults[name] = (fault, self._clock.monotonic_s() + WAIT_S)

    def message(self, name: str, otherwise: str) -> str:
        """What people are told of the service."""
        fault, _ = self._faults.get(name, ("", 0.0))
        return f"left as it is, control failed: {fault}" if fault else otherwise

    def forget(self, name: str) -> None:
        self._faults.pop(name, None)
