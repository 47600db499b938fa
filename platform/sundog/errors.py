"""The one exception tree. Every error that a user can cause or cure says what to do about it.

SundogError
├── SpecError            what was asked for does not parse: file, line, key, nearest valid key
├── NotFound             a dataset, run, model, service or file that is not there
├── AlreadyExists        somebody committed this name or version first
├── Conflict             a compare-and-swap lost: somebody moved it in between
├── Corrupt              bytes that do not match their hash, or a half-written file
├── Unsafe               loading it would run somebody's code
├── StorageUnavailable   the storage root cannot be read or written (full, denied, unreachable)
├── FormatTooNew         written by a later Sundog
├── ClusterError         Ray is not there, is there already, or refuses
├── RunError             a run cannot start or go on
│   ├── RunCancelled     somebody cancelled it
│   ├── RunBusy          another driver holds the run's lease
│   ├── Diverged         its loss or gradient is no number any more
│   └── RecipeError      the user's recipe raised, or is not a recipe
├── ServiceError         a service cannot be deployed
├── CapacityError        the cloud refuses a node (typed further in clouds/base.py)
├── ControlUnavailable   the control actor is away; what was running goes on
├── LeaseHeld            another control writes the store
└── LeaseLost            this control may no longer write it
"""

from __future__ import annotations


class SundogError(Exception):
    """An expected failure. `fix` is the way out, printed on its own line.

    `exit_code` is what the CLI returns: 1 in general, 2 for a wrong argument or spec.
    """

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  {self.fix}" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries inside Ray; keep the fix on the way.
        return (type(self), (self.message, self.fix))


class SpecError(SundogError):
    exit_code = 2


class NotFound(SundogError):
    pass


class AlreadyExists(SundogError):
    pass


class Conflict(SundogError):
    pass


class Corrupt(SundogError):
    pass


class Unsafe(SundogError):
    pass


class StorageUnavailable(SundogError):
    pass


class FormatTooNew(SundogError):
    pass


class ClusterError(SundogError):
    pass


class RunError(SundogError):
    pass


class RunCancelled(RunError):
    exit_code = 130


class RunBusy(RunError):
    pass


class Diverged(RunError):
    pass


class RecipeError(RunError):
    pass


class ServiceError(SundogError):
    pass


class CapacityError(SundogError):
    pass


class ControlUnavailable(SundogError):
    pass


class LeaseHeld(SundogError):
    pass


class LeaseLost(SundogError):
    pass


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
