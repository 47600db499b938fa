"""One request, whatever protocol it came by: who may, which version answers, what is noted of it.

Reads no bytes of any protocol and starts no server.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sundog.clock import WALL
from sundog.security.authoriser import ANONYMOUS, Authoriser, Headers, Identity, Refusal
from sundog.security.limits import Limiter
from sundog.serving.access_log import AccessLog
from sundog.serving.capture import Capturer, Rule
from sundog.serving.contract import Parsed
from sundog.serving.departures import Departures
from sundog.serving.feedback import Remembered
from sundog.serving.http_body import Receive
from sundog.serving.lane import NotServed, Outputs
from sundog.serving.observe import Observer
from sundog.serving.routes import Routes, VersionRoute
from sundog.serving.shadow import label_of
from sundog.serving.stats import Metrics

if TYPE_CHECKING:
    from sundog.serving.tracing import Traces

PRIORITY = b"x-sundog-priority"
"""Header of requests that may wait: `batch`. They are served when no other request waits."""
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Call:
    """One request on its way: what the log and the metrics are told at its end."""

    headers: dict[bytes, bytes]
    request_id: bytes = b""
    service: str = ""
    version: str = ""
    identity: Identity = ANONYMOUS
    receive: Receive | None = None
    """Over HTTP: what says that the client has left"""
    span: Any = None
    """Of OpenTelemetry, where requests are traced"""
    trace: str | None = None
    """The `traceparent` for what this request causes"""


class Calls:
    """What every protocol of a gateway shares."""

    def __init__(
        self,
        routes: Routes,
        authoriser: Authoriser,
        metrics: Metrics | None = None,
        log: AccessLog | None = None,
        observer: Observer | None = None,
        remembered: Remembered | None = None,
        limiter: Limiter | None = None,
        captures: Capturer | None = None,
    ) -> None:
        self.routes = routes
        self.authoriser = authoriser
        self.metrics = metrics or Metrics()
        self.log = log or AccessLog(None)
        self.observer = observer or Observer()
        # An empty one is false: it has a length.
        self.remembered = Remembered() if remembered is None else remembered
        self.limiter = limiter or Limiter()
        self.captures = captures or Capturer()
        self.departures = Departures()
        self.traces: Traces | None = None
        self.closing = False

    @property
    def ready(self) -> bool:
        return self.routes.loaded.is_set() and not self.closing

    def authorise(self, call: Call, headers: Headers, service: str) -> None:
        """Who asks for a service is noted, and counted against their limits. Raises NotServed (401,
        403, 429)."""
        # Anybody may make names up: only those that are served become a series and a line.
        if service in self.routes.services:
            call.service = service
        verdict = self.authoriser.authorise(headers, service)
        if isinstance(verdict, Refusal):
            call.identity = Identity(verdict.key_id)
            raise self._refused(call.service, verdict)
        call.identity = verdict

    def look(self, headers: Headers, service: str = "") -> Identity:
        """Who wants to see what is served; nothing is counted. Raises NotServed (401, 403)."""
        verdict = self.authoriser.authorise(headers, "")
        if not isinstance(verdict, Refusal) and service and not verdict.may(service):
            key_id = verdict.key_id
            verdict = Refusal(403, f"key {key_id} is not for service {service!r}", key_id=key_id)
        if isinstance(verdict, Refusal):
            raise self._refused(service if service in self.routes.services else "", verdict)
        return verdict

    def _refused(self, service: str, refusal: Refusal) -> NotServed:
        self.metrics.refused(service, refusal.key_id, refusal.status)
        return NotServed(refusal.status, refusal.message, refusal.retry_after_s)

    def begin(self, call: Call) -> None:
        """The request is here: its span begins, where requests are traced."""
        if self.traces is not None:
            from sundog.serving.tracing import parent_of

            call.span = self.traces.begin(call.headers)
            if call.span.is_recording():
                call.trace = parent_of(call.span)

    async def choose(self, call: Call, name: str, version: str | None) -> VersionRoute:
        """The version that answers; waits for a first one. Raises BadRequest and NotServed."""
        route = self.routes.find(name)
        sticky = route.sticky_key(call.headers, call.identity.key_id)
        _, chosen = self.routes.find_version(name, version, sticky)
        if chosen is None:
            chosen = await self.hold(name)
        call.version = chosen.version
        return chosen

    async def hold(self, name: str) -> VersionRoute:
        """A service without any version yet: its first one may be starting."""
        return await self.routes.first_version(name)

    async def ask(self, call: Call, chosen: VersionRoute, parsed: Parsed) -> Outputs:
        """The version's answer; what a running rollout wants to know of it is noted."""
        route = self.routes.services.get(call.service)
        later = may_wait(call)
        parsed.trace = call.trace
        began_s = WALL.monotonic_s()
        answer = chosen.lane.call(parsed, later)
        if call.receive is None:
            outputs = await answer
        else:
            self.departures.add(answer, call.receive)
            try:
                outputs = await answer
            finally:
                self.departures.remove(answer)
        if route is None or (route.shadow is None and not route.labels and route.capture is None):
            return outputs
        name, observer = call.service, self.observer
        if route.capture is not None and self.captures.chosen(route.capture):
            self._capture(route.capture, call, chosen, parsed, outputs)
        if route.labels:
            observer.answered(name, chosen.version, label_of(outputs))
        if route.shadow is not None:
            seconds = WALL.monotonic_s() - began_s
            route.shadow.offer(
                chosen.version, parsed, outputs, seconds, call.request_id.decode(),
                lambda: observer.service(name),
            )  # fmt: skip
        return outputs

    def _capture(
        self, rule: Rule, call: Call, chosen: VersionRoute, parsed: Parsed, outputs: Outputs
    ) -> None:
        contract = chosen.contract
        about = call.request_id.decode(), call.service, chosen.version, call.identity.key_id
        self.captures.offer(
            rule, about,
            [(t.name, t.datatype, s, r)
             for t, s, r in zip(contract.inputs, parsed.shapes, parsed.raw, strict=True)],
            [(t.name, *o) for t, o in zip(contract.outputs, outputs, strict=True)],
        )  # fmt: skip

    def tokens(self, call: Call, kind: str, count: int) -> None:
        """Tokens that an answer cost, as whoever made it says. `kind`: input or output."""
        self.metrics.tokens(call.service, call.identity.key_id, kind, count)
        self.limiter.tokens(call.identity.key_id, count)

    def note(self, call: Call, status: int, size: int, seconds: float) -> None:
        """One request has ended; who named no service that is here is in no log and no metric.
        `size`: bytes of its answer."""
        if not call.service:
            if call.span is not None:
                self._note_trace(call, status, {})
            return
        key = call.identity.key_id
        self.metrics.count(call.service, call.version, key, status, seconds)
        if status >= 500 and call.identity.counted:
            self.limiter.give_back(key, call.headers.items())
        route = self.routes.services.get(call.service)
        sticky = route.sticky_key(call.headers, key) if route is not None and route.sticky else ""
        self.observer.note(call.service, call.version, status, seconds, sticky)
        if status == 200 and route is not None and route.keeps_feedback:
            self.remembered.add(call.request_id.decode(), call.service, call.version)
        entry = {
            "at": WALL.now_s(), "id": call.request_id.decode(), "service": call.service,
            "version": call.version, "key": key, "status": status, "bytes": size,
            "ms": round(seconds * 1000, 3),
        }  # fmt: skip
        if call.span is not None or b"traceparent" in call.headers:
            self._note_trace(call, status, entry)
        self.log.add(entry)

    def _note_trace(self, call: Call, status: int, entry: dict[str, Any]) -> None:
        from sundog.serving.tracing import end, trace_id_of

        if call.span is None:
            entry["trace"] = trace_id_of(call.headers)
            return
        entry["trace"] = f"{call.span.get_span_context().trace_id:032x}"
        attributes = {
            "sundog.service": call.service, "sundog.version": call.version,
            "sundog.key": call.identity.key_id, "sundog.request_id": call.request_id.decode(),
        }  # fmt: skip
        end(call.span, status, attributes)


def may_wait(call: Call) -> bool:
    return call.headers.get(PRIORITY) == b"batch"


def request_id_of(headers: dict[bytes, bytes]) -> bytes:
    """The caller's own `x-request-id` where it is a plain word, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return secrets.token_hex(8).encode()
