"""Traces by OpenTelemetry, where it is installed and configured by its own `OTEL_*` variables.

Nothing of it is imported where it is not, and what would be traced is then not wrapped at all.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import structlog
from structlog.typing import EventDict

from dispatcher.observe.call_ids import MORE_IDS

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = structlog.get_logger("dispatcher.traces")

#: Where exporters name themselves, as OpenTelemetry's own configurator finds them.
_EXPORTERS: Final = "opentelemetry_traces_exporter"
#: Each of these alone means that traces are to be sent, as the specification's default is `otlp`.
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
#: Time for the last spans at a stop: a collector that is away is not waited for.
_FLUSH_S: Final = 1.0
_SERVICE: Final = "redis-trip-dispatcher"


class TracingError(Exception):
    """An `OTEL_*` variable cannot be heeded; the message names it."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """What traces: the tracer, and the provider where it was made here."""

    tracer: Tracer
    _provider: Any = None

    async def close(self) -> None:
        """Sends the last spans, and waits for that only for a moment."""
        if self._provider is None:
            return
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.force_flush(int(_FLUSH_S * 1000))
            loop.call_soon_threadsafe(sent.set)

        # A daemon, so that a collector which does not answer does not hold up the end of the process.
        threading.Thread(target=flush, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_S):
                await sent.wait()
        except TimeoutError:
            log.warning("traces are left behind")


def check() -> None:
    """Raises TracingError where the environment asks for an exporter that there is not."""
    names = _exporter_names(os.environ)
    if names and _is_installed():
        for name in names:
            _find_exporter(name)


def start() -> Tracing | None:
    """Begins to trace, if the environment asks for it. None where it does not.

    Raises TracingError where it asks for an exporter that there is not.
    """
    if "opentelemetry.trace" in sys.modules:  # by opentelemetry-instrument, which has configured all
        from opentelemetry import trace

        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return _tracing(trace.get_tracer_provider(), is_ours=False)
    names = _exporter_names(os.environ)
    if not names:
        return None
    if not _is_installed():
        log.warning("traces are asked for, and not installed", install=f"{_SERVICE}[otel]")
        return None
    return _tracing(_make_provider(names), is_ours=True)


def _tracing(provider: Any, *, is_ours: bool) -> Tracing:
    MORE_IDS[:] = [_add_span]
    tracer: Tracer = provider.get_tracer("dispatcher", version(_SERVICE))
    return Tracing(tracer, provider if is_ours else None)


def _make_provider(names: list[str]) -> Any:
    # ruff: noqa: PLC0415  none of it is imported where nothing is traced
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {SERVICE_VERSION: version(_SERVICE)}
    if "OTEL_SERVICE_NAME" not in os.environ and "service.name" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        attributes[SERVICE_NAME] = "dispatcher"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    for name in names:
        exporter = _find_exporter(name).load()()
        # Gathers spans in a bounded queue, and drops what the collector does not take in time.
        provider.add_span_processor(BatchSpanProcessor(exporter))
    log.info("calls are traced", exporters=names)
    return provider


def _exporter_names(environment: Mapping[str, str]) -> list[str]:
    """The exporters that are asked for, by the names that they have for OpenTelemetry."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    asked = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if not asked:
        asked = "otlp" if any(environment.get(name) for name in _ENDPOINTS) else "none"
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    names = [name.strip() for name in asked.split(",")]
    return [otlp if name == "otlp" else name for name in names if name not in ("", "none")]


def _is_installed() -> bool:
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None


def _find_exporter(name: str) -> EntryPoint:
    found = entry_points(group=_EXPORTERS)
    for entry in found:
        if entry.name == name:
            return entry
    known = ", ".join(sorted(entry.name for entry in found))
    raise TracingError(f"OTEL_TRACES_EXPORTER: {name} is not installed; there is {known or 'none'}")


def _add_span(event: EventDict) -> None:
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event.setdefault("trace_id", trace.format_trace_id(context.trace_id))
        event.setdefault("span_id", trace.format_span_id(context.span_id))
