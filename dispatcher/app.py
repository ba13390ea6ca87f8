"""A server process: how it starts, serves and stops. What it is made of stands in composition."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable

import structlog
from aiohttp import web

from dispatcher.composition import Services, job_loops, services
from dispatcher.config import Settings
from dispatcher.core.errors import StoreUnavailable
from dispatcher.jobs.loop import FunctionJob, JobLoop
from dispatcher.live.pubsub import Subscriber
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.observe.metrics import Metrics
from dispatcher.service.hub import Hub
from dispatcher.service.operator_reads import OperatorReads
from dispatcher.service.readiness import Readiness
from dispatcher.service.zone_views import ZoneViews
from dispatcher.web.application import build_application
from dispatcher.web.auth import Authenticator
from dispatcher.web.boundary import Boundary
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.fastpath import make_runner
from dispatcher.web.frame_handlers import FrameHandlers
from dispatcher.web.handlers import Handlers
from dispatcher.web.websocket_endpoint import WebSocketEndpoint
from dispatcher.zones_file import load_zones

log = structlog.get_logger("dispatcher")


async def run(
    settings: Settings, sock: socket.socket, on_ready: Callable[[], None], stop: asyncio.Event
) -> None:
    """Serves on a bound socket until `stop` is set, then drains and closes.

    Raises SettingsError where a key or zones file is wrong, StoreUnavailable where an engine is away.
    """
    authenticator = Authenticator.from_settings(settings)
    zones = load_zones(settings.zones_file)
    async with services(settings, zones) as parts:
        hub = Hub()
        readiness = Readiness(
            zones=zones, state=parts.live.state, database=parts.ledger.database, stop=stop
        )
        views = _zone_views(parts, readiness)
        sockets = _websocket_endpoint(parts, authenticator, hub, views)
        runner = make_runner(_web_application(parts, authenticator, sockets, readiness, views))
        subscriber = Subscriber(
            str(settings.redis_url),
            cluster=settings.redis_cluster,
            zones=zones.names(),
            deliver=hub.deliver,
            resync=hub.resync,
        )
        interval_s = min(1.0, settings.presence_ttl_s / 10)
        loops = [
            *job_loops(parts),
            JobLoop(FunctionJob("stale-sockets", interval_s, sockets.close_stale)),
        ]
        await subscriber.start()
        await runner.setup()
        try:
            await web.SockSite(runner, sock, backlog=2048).start()
            for loop in loops:
                loop.start()
            parts.effects.wakeups.notify_all()  # waves may have become due while nobody was here
            # What stands now stays: collecting it again and again cost a tenth of the time, and pauses.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 100)
            log.info("serving", zones=zones.names())
            on_ready()
            await stop.wait()
            log.info("draining", sockets=len(sockets))
            await sockets.drain(settings.drain_s)
        finally:
            await runner.cleanup()
            await asyncio.gather(*(loop.stop() for loop in loops))
            await subscriber.stop()
            await views.close()
            await readiness.close()
            with contextlib.suppress(StoreUnavailable):
                await parts.positions.save()
                # Twice: an outcome waits for one round, so that its offer is there before it.
                await parts.effects.offer_log.save(parts.ledger.database)
                await parts.effects.offer_log.save(parts.ledger.database)


def _zone_views(parts: Services, readiness: Readiness) -> ZoneViews:
    return ZoneViews(
        zones=parts.zones,
        scripts=ZoneViewScripts(parts.live.pipeline),
        database=parts.ledger.database,
        health=readiness.check,
        fix_age_s=parts.settings.fix_max_age_s,
    )


def _operator_reads(parts: Services) -> OperatorReads:
    return OperatorReads(
        zones=parts.zones,
        database=parts.ledger.database,
        state=parts.live.state,
        offers=parts.live.offers,
        presence=parts.live.presence,
        views=ZoneViewScripts(parts.live.pipeline),
        fix_age_s=parts.settings.fix_max_age_s,
    )


def _websocket_endpoint(
    parts: Services, authenticator: Authenticator, hub: Hub, views: ZoneViews
) -> WebSocketEndpoint:
    settings = parts.settings
    return WebSocketEndpoint(
        authenticator=authenticator,
        client_ip=ClientIp(settings.trusted_proxies),
        frames=FrameHandlers(
            zones=parts.zones,
            coordinator=parts.coordinator,
            positions=parts.positions,
            limits=parts.limits,
            idempotency_required=settings.idempotency_required,
        ),
        hub=hub,
        presence=parts.presence,
        snapshots=parts.snapshots,
        zone_views=views,
        limits=parts.limits,
        allowed_origins=settings.allowed_origins,
        heartbeat_timeout_s=settings.presence_ttl_s,
    )


def _web_application(
    parts: Services,
    authenticator: Authenticator,
    sockets: WebSocketEndpoint,
    readiness: Readiness,
    views: ZoneViews,
) -> web.Application:
    commits, metrics = parts.ledger.commits, Metrics()
    metrics.gauge("dispatcher_sockets", "Open WebSockets.", lambda: len(sockets))
    metrics.gauge("dispatcher_zone_viewers", "Sockets that watch a zone.", views.viewers)
    metrics.gauge("dispatcher_commits", "Batches sent.", lambda: commits.batches)
    metrics.gauge("dispatcher_changes", "Changes in them.", lambda: commits.changes)

    handlers = Handlers(
        zones=parts.zones,
        coordinator=parts.coordinator,
        availability=parts.availability,
        positions=parts.positions,
        stranded_trips=parts.stranded_trips,
        reads=parts.reads,
        operator_reads=_operator_reads(parts),
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
        metrics=metrics,
        idempotency_required=parts.settings.idempotency_required,
        on_driver_call=parts.presence.seen_over_http,
    )
    return build_application(handlers, boundary, websocket=sockets.handle)
