"""A server process: how it starts, serves and stops. What it is made of stands in composition."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import structlog
from aiohttp import web

from dispatcher.background import drift_watch_job, job_loops, zone_census_job, zone_holder
from dispatcher.composition import Services, services
from dispatcher.config import Settings, SettingsError
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.stop_signal import StopSignal
from dispatcher.gauges import add_gauges
from dispatcher.jobs.engine_watch import EngineWatch
from dispatcher.jobs.loop import FunctionJob, JobLoop
from dispatcher.jobs.zone_holder import ZoneHolder
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.observe.crowd_lines import CROWD_LINES
from dispatcher.observe.loop_lag import LoopLag
from dispatcher.observe.metrics import Metrics
from dispatcher.observe.tracing import Tracing
from dispatcher.observe.tracing import start as start_tracing
from dispatcher.observe.worker_metrics import WRITE_INTERVAL_S, WorkerPlace
from dispatcher.service.readiness import Readiness
from dispatcher.service.zone_views import ZoneViews
from dispatcher.web.application import build_application
from dispatcher.web.auth import Authenticator
from dispatcher.web.boundary import Boundary
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.door import Door, DoorLimits
from dispatcher.web.endpoints import ENDPOINTS, hidden_endpoints
from dispatcher.web.fastpath import make_runner
from dispatcher.web.frame_handlers import FrameHandlers
from dispatcher.web.handlers import Handlers
from dispatcher.web.listening import BACKLOG, METRICS, bind_metrics, listen
from dispatcher.web.open_files import possible_connections, raise_open_files
from dispatcher.web.websocket_endpoint import WebSocketEndpoint
from dispatcher.zones_file import load_zones

log = structlog.get_logger("dispatcher")

#: When the steps of a stop are given up, in s after the window (STOPPED_AFTER_WINDOW_S for all).
_ANSWERED_S: Final = 2.5
_SAVED_S: Final = 3.0
_CLOSED_S: Final = 3.2


async def run(
    settings: Settings,
    sock: socket.socket,
    on_ready: Callable[[], None],
    stop: StopSignal,
    place: WorkerPlace | None = None,
) -> None:
    """Serves on a bound socket until `stop` is set, then drains and closes.

    `place` is given to one of several workers.

    Raises SettingsError where a key or zones file is wrong, StoreUnavailable where an engine is away.
    """
    authenticator = Authenticator.from_settings(settings)
    zones, tracing = load_zones(settings.zones_file), start_tracing()
    async with _closed_in_time(services(settings, zones, tracing), stop) as parts:
        readiness = Readiness(
            zones=zones,
            state=parts.live.state,
            database=parts.ledger.database,
            authorities=parts.authorities,
            stop=stop,
        )
        metrics, door, lag = Metrics(place), _door(settings), LoopLag()
        views, engine_watch = _zone_views(parts, readiness), EngineWatch(readiness.check)
        sockets = _websocket_endpoint(parts, authenticator, views)
        handlers, boundary = _handlers_and_boundary(parts, authenticator, readiness, metrics, tracing)
        hidden = hidden_endpoints(settings.public_pages)
        if settings.metrics_address is not None:
            hidden |= {"metrics"}  # they have an address of their own
        holder, census = zone_holder(parts), zone_census_job(parts)
        drift_watch = drift_watch_job(parts, holder)
        add_gauges(
            metrics, parts,
            door=door, sockets=sockets, views=views, drift=drift_watch, engines=engine_watch,
            census=census, holder=holder,
        )  # fmt: skip
        runner = make_runner(
            build_application(handlers, boundary, websocket=sockets.handle, hidden=hidden),
            door=door,
            shutdown_timeout_s=settings.drain_s + _ANSWERED_S,
        )
        interval_s = min(1.0, settings.presence_ttl_s / 10)
        loops = [
            *job_loops(parts, holder),
            JobLoop(drift_watch),
            JobLoop(engine_watch),
            JobLoop(census),
            JobLoop(FunctionJob("stale-sockets", interval_s, sockets.close_stale)),
        ]
        if place is not None:
            loops.append(JobLoop(FunctionJob("share-metrics", WRITE_INTERVAL_S, metrics.share)))
        await runner.setup()
        metrics_runner = None
        try:
            listen(sock)
            site = web.SockSite(runner, sock, backlog=BACKLOG)
            await site.start()
            metrics_runner = await _serve_metrics(settings, handlers, boundary, shared=place is not None)
            for loop in loops:
                loop.start()
            lag.start()
            # What stands now stays: collecting it again and again cost a tenth of the time, and pauses.
            gc.collect()
            gc.freeze()
            log.info("serving", zones=zones.names())
            on_ready()
            await stop.wait()
            log.info("draining", sockets=len(sockets))
            await site.stop()
            sock.close()  # whoever connects from now on is refused, and tries another server
            runner.announce_end()  # and so does who is connected
            await _finish(stop, "sockets", sockets.drain(settings.drain_s), _ANSWERED_S)
        finally:
            await _finish(stop, "requests", runner.cleanup(), _ANSWERED_S)
            if metrics_runner is not None:
                await _finish(stop, "metrics", metrics_runner.cleanup(), _ANSWERED_S)
            await _finish(stop, "jobs", _stop_jobs(loops, parts, views, readiness), _SAVED_S)
            lag.stop()
            await _finish(stop, "saving", _save(parts, metrics, tracing), _SAVED_S)


@contextlib.asynccontextmanager
async def _closed_in_time(
    opened: contextlib.AbstractAsyncContextManager[Services], stop: StopSignal
) -> AsyncIterator[Services]:
    """What `opened` gives, whose closing is given up when its time is over."""
    async with contextlib.AsyncExitStack() as stack:
        parts = await stack.enter_async_context(opened)
        closing = stack.pop_all()
        try:
            yield parts
        finally:
            await _finish(stop, "engines", closing.aclose(), _CLOSED_S)


async def _finish(stop: StopSignal, step: str, work: Awaitable[object], after_window_s: float) -> None:
    """Does a step of the stop; one that fails or takes too long does not end the others."""
    try:
        if not await stop.finish(work, after_window_s):
            log.warning("stop does not wait any longer", step=step)
    except StoreUnavailable as error:
        log.warning("stop leaves a step out", step=step, reason=str(error))
    except Exception:
        log.exception("stop failed", step=step)


async def _stop_jobs(
    loops: Sequence[JobLoop | ZoneHolder], parts: Services, views: ZoneViews, readiness: Readiness
) -> None:
    await asyncio.gather(*(loop.stop() for loop in loops))
    await parts.channels.stop()
    await parts.subscriber.stop()
    await views.close()
    await readiness.close()


async def _save(parts: Services, metrics: Metrics, tracing: Tracing | None) -> None:
    CROWD_LINES.write_out()
    await metrics.share()
    await parts.positions.save()
    # Twice: outcomes and races wait for one round, so that what they belong to is there before them.
    for _ in range(2):
        await parts.effects.offer_log.save(parts.ledger.database)
        await parts.effects.race_log.save(parts.ledger.database)
    if tracing is not None:
        await tracing.close()


def _door(settings: Settings) -> Door:
    possible = possible_connections(raise_open_files())
    if possible < settings.max_connections:
        log.warning("fewer connections than set", set=settings.max_connections, possible=possible)
    limits = DoorLimits.of(settings, min(settings.max_connections, possible))
    return Door(limits, ClientIp(settings.trusted_proxies))


def _zone_views(parts: Services, readiness: Readiness) -> ZoneViews:
    return ZoneViews(
        zones=parts.zones,
        scripts=ZoneViewScripts(parts.live.pipeline),
        database=parts.ledger.database,
        authorities=parts.authorities,
        health=readiness.check,
        fix_age_s=parts.settings.fix_max_age_s,
    )


def _websocket_endpoint(
    parts: Services, authenticator: Authenticator, views: ZoneViews
) -> WebSocketEndpoint:
    settings = parts.settings
    return WebSocketEndpoint(
        authenticator=authenticator,
        client_ip=ClientIp(settings.trusted_proxies),
        frames=FrameHandlers(
            zones=parts.zones,
            coordinator=parts.coordinator,
            positions=parts.positions,
            availability=parts.availability,
            vehicle_types=settings.vehicle_types,
            limits=parts.limits,
            idempotency_required=settings.idempotency_required,
        ),
        hub=parts.hub,
        channels=parts.channels,
        presence=parts.presence,
        snapshots=parts.snapshots,
        zone_views=views,
        limits=parts.limits,
        allowed_origins=settings.allowed_origins,
        heartbeat_timeout_s=settings.presence_ttl_s,
    )


async def _serve_metrics(
    settings: Settings, handlers: Handlers, boundary: Boundary, *, shared: bool
) -> web.AppRunner | None:
    """Serves `/metrics` on its own address, if it has one; `shared` with other workers.

    Raises SettingsError where the address cannot be had.
    """
    if settings.metrics_address is None:
        return None
    hidden = {endpoint.name for endpoint in ENDPOINTS} - {"metrics"}
    runner = make_runner(build_application(handlers, boundary, hidden=hidden), shutdown_timeout_s=1.0)
    await runner.setup()
    try:
        sock = bind_metrics(settings.metrics_address, shared=shared)
        listen(sock, METRICS)
        await web.SockSite(runner, sock, backlog=BACKLOG).start()
    except SettingsError:
        await runner.cleanup()
        raise
    return runner


def _handlers_and_boundary(
    parts: Services,
    authenticator: Authenticator,
    readiness: Readiness,
    metrics: Metrics,
    tracing: Tracing | None,
) -> tuple[Handlers, Boundary]:
    handlers = Handlers(
        zones=parts.zones,
        coordinator=parts.coordinator,
        availability=parts.availability,
        positions=parts.positions,
        stranded_trips=parts.stranded_trips,
        reads=parts.reads,
        snapshots=parts.snapshots,
        explanation=parts.explanation,
        operator_reads=parts.operator_reads,
        operator_offers=parts.operator_offers,
        heat=parts.heat,
        readiness=readiness.check,
        metrics=metrics,
        vehicle_types=parts.settings.vehicle_types,
        tile_url=parts.settings.console_tile_url,
        tile_attribution=parts.settings.console_tile_attribution,
    )
    boundary = Boundary(
        authenticator=authenticator,
        client_ip=ClientIp(parts.settings.trusted_proxies),
        limits=parts.limits,
        deadline_s=parts.settings.request_deadline_s,
        idempotency_required=parts.settings.idempotency_required,
        on_driver_call=parts.presence.seen_over_http,
        tracer=tracing.tracer if tracing else None,
    )
    return handlers, boundary
