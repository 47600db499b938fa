"""W3C trace context through OpenTelemetry: a span for each request in the gateway, one for each call of
the model in a replica, tied together over the private sockets.

Off unless `SUNDOG_TRACES` says where spans go; then this module is not even imported by a request.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import orjson
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
)

from sundog.errors import SpecError

FLUSH_MS = 1000
MAX_LINKS = 16
"""Requests of one batch that its span names."""
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


def trace_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The trace that a request came with; empty without one."""
    found = context_of(headers.get(b"traceparent", b"").decode("latin-1"))
    return f"{found.trace_id:032x}" if found is not None else ""


def context_of(parent: str, state: str = "") -> SpanContext | None:
    """A `traceparent` header read as the standard says; None for what is none."""
    match = _PARENT.fullmatch(parent.strip())
    if match is None or match[1] == "ff" or (match[1] == "00" and len(parent.strip()) != 55):
        return None
    number, span = int(match[2], 16), int(match[3], 16)
    if not number or not span:
        return None
    return SpanContext(
        number, span, is_remote=True, trace_flags=TraceFlags(int(match[4], 16) & 1),
        trace_state=TraceState.from_header([state]) if state else None,
    )  # fmt: skip


def parent_of(span: Any) -> str:
    """The `traceparent` for what a span causes."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


class Traces:
    """Makes spans of one process and hands them to an exporter in the background."""

    def __init__(self, exporter: SpanExporter, process: str, share: float = 1.0) -> None:
        """`share`: of the traces that begin here; one that came sampled is always followed."""
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({"service.name": process}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=FLUSH_MS)
        )
        self._tracer = self._provider.get_tracer("sundog")

    def begin(self, headers: Mapping[bytes, bytes]) -> Any:
        """The span of a request, within the trace that it came with."""
        given = context_of(
            headers.get(b"traceparent", b"").decode("latin-1"),
            headers.get(b"tracestate", b"").decode("latin-1"),
        )
        return self._tracer.start_span("request", _within(given), kind=SpanKind.SERVER)

    def model_call(self, parents: Sequence[str]) -> AbstractContextManager[Any]:
        """A span around one call of the model for a batch: child of its first, linked to the others."""
        contexts = [c for c in map(context_of, parents[:MAX_LINKS]) if c is not None]
        if not contexts:
            return nullcontext()
        return self._tracer.start_as_current_span(
            "model", _within(contexts[0]), links=[Link(c) for c in contexts[1:]],
            attributes={"sundog.requests": len(parents)},
        )  # fmt: skip

    def close(self) -> None:
        self._provider.shutdown()


def _within(context: SpanContext | None) -> Any:
    if context is None:
        return trace.set_span_in_context(trace.INVALID_SPAN)
    return trace.set_span_in_context(NonRecordingSpan(context))


def end(span: Any, status: int, attributes: Mapping[str, str | int]) -> None:
    """A request's span is complete."""
    if span.is_recording():
        span.set_attributes({**attributes, "http.response.status_code": status})
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
    span.end()


class JsonLines(SpanExporter):
    """A file of spans, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            with self._path.open("ab") as file:
                file.write(b"".join(orjson.dumps(_plain(s)) + b"\n" for s in spans))
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


def _plain(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    return {
        "trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "name": span.name, "process": span.resource.attributes["service.name"],
        "start_ns": span.start_time, "end_ns": span.end_time,
        "attributes": dict(span.attributes or {}),
        "links": [f"{link.context.span_id:016x}" for link in span.links],
    }  # fmt: skip


def traces_of(process: str, environ: Mapping[str, str] = os.environ) -> Traces:
    """What `SUNDOG_TRACES` (otlp, or a folder) and `SUNDOG_TRACES_SHARE` ask for. Raises SpecError."""
    where = environ["SUNDOG_TRACES"]
    text = environ.get("SUNDOG_TRACES_SHARE", "1")
    try:
        share = float(text)
        if not 0 <= share <= 1:
            raise ValueError
    except ValueError:
        raise SpecError(f"SUNDOG_TRACES_SHARE={text!r} is no share", "write 0.01 for 1%") from None
    if where == "otlp":
        return Traces(_otlp(), process, share)
    folder = Path(where.removeprefix("file://"))
    if not folder.is_absolute():
        raise SpecError(
            f"SUNDOG_TRACES={where!r} is neither otlp nor an absolute folder",
            "write SUNDOG_TRACES=otlp (and OTEL_EXPORTER_OTLP_ENDPOINT) or SUNDOG_TRACES=/var/log/traces",
        )
    return Traces(JsonLines(folder / f"{process}-{os.getpid()}.jsonl"), process, share)


def _otlp() -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter
    except ImportError:
        raise SpecError(
            "SUNDOG_TRACES=otlp needs an exporter that is not installed",
            "pip install opentelemetry-exporter-otlp-proto-http",
        ) from None
    return trace_exporter.OTLPSpanExporter()  # type: ignore[no-any-return]
