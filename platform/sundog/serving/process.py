"""What is done with inputs before a model and with its outputs after it, in the replica: someone's own code.

Clients send what `before` takes and get what `after` gives.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Step = Callable[[dict[str, Any]], Mapping[str, Any]]


class WrongInput(Exception):
    """What a client sent is not what `before` takes: its ValueError."""


@dataclass(frozen=True)
class Process:
    """`signature`: what clients send and get."""

    signature: dict[str, Any]
    before: Step | None = None
    after: Step | None = None

    def around(self, model: Any) -> Callable[[dict[str, Any]], Any]:
        """The model's `predict` as clients see it. Answers in parts pass `after` part by part."""

        def predict(inputs: dict[str, Any]) -> Any:
            if self.before is not None:
                try:
                    inputs = dict(self.before(inputs))
                except ValueError as error:
                    raise WrongInput(str(error)) from error
            answer = model.predict(inputs)
            return answer if self.after is None else self._finish(self.after, answer)

        return predict

    def _finish(self, after: Step, answer: Any) -> Any:
        if inspect.isawaitable(answer):
            return self._awaited(after, answer)
        if isinstance(answer, AsyncIterator):
            return _each_awaited(after, answer)
        return _each(after, answer) if isinstance(answer, Iterator) else after(answer)

    async def _awaited(self, after: Step, answer: Any) -> Any:
        return self._finish(after, await answer)


def _each(after: Step, parts: Iterator[Any]) -> Generator[Any]:
    try:
        for part in parts:
            yield after(part)
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()


async def _each_awaited(after: Step, parts: AsyncIterator[Any]) -> AsyncGenerator[Any]:
    try:
        async for part in parts:
            yield after(part)
    finally:
        close = getattr(parts, "aclose", None)
        if close is not None:
            await close()
