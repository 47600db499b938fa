"""Tokens that an answer of `/v1` cost, as its server says: OpenAI's chat, completions, embeddings and
responses, Anthropic's messages.
"""

from __future__ import annotations

from typing import Any

import orjson

# what we count -> the names that servers give it
_TOKENS = (
    ("input", "prompt_tokens", "input_tokens"),
    ("output", "completion_tokens", "output_tokens"),
)


class Usage:
    """Of one answer. `tokens`: by kind, input and output; the last word of the server holds."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self._chunks = 0

    def whole(self, body: bytes) -> None:
        self._read(body)

    def event(self, event: bytes) -> bool:
        """Counts what an event of a stream says; whether it is chat's, and says nothing but that."""
        if b'delta"' in event or b'"text"' in event:
            self._chunks += 1
        if b'"usage"' not in event:
            return False
        document = self._read(_data_of(event))
        return bool(document.get("usage")) and not document.get("choices")

    def left(self) -> None:
        """The client left before the server said what it was: each part has been a token at least."""
        if self._chunks:
            self.tokens["output"] = max(self.tokens.get("output", 0), self._chunks)

    def _read(self, body: bytes) -> dict[str, Any]:
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return {}
        if not isinstance(document, dict):
            return {}
        # Events of responses and of messages have it within what they are about.
        for holder in (document, document.get("response"), document.get("message")):
            usage = holder.get("usage") if isinstance(holder, dict) else None
            if isinstance(usage, dict):
                self._count(usage)
        return document

    def _count(self, usage: dict[str, Any]) -> None:
        for kind, *names in _TOKENS:
            count = next((usage[n] for n in names if type(usage.get(n)) is int), None)
            if count is not None and count >= 0:
                self.tokens[kind] = count


def _data_of(event: bytes) -> bytes:
    """The data of a server-sent event, whatever else its lines say."""
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)
