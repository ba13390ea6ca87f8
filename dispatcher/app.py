"""All wiring, in one place: what a server is made of, and how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from dispatcher.config import Settings
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.zones import Zones
from dispatcher.jobs.absent_drivers import Absence
from dispatcher.jobs.cleanup import Cleanup
from dispatcher.jobs.flush import Recorder
from dispatcher.jobs.loop import Periodic
from dispatcher.jobs.reconcile import Sweeper
from dispatcher.jobs.waves import Waves
from dispatcher.ledger.commits import Ledger
from dispatcher.ledger.database import Database
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.protocol import connect
from dispatcher.live.pubsub import Push
from dispatcher.live.scripts import Scripts
from dispatcher.live.settle import Settler
from dispatcher.observe.metrics import Metrics
from dispatcher.service.coordinator import Road
from dispatcher.service.driver_directory import Homes
from dispatcher.service.drivers import Drivers
from dispatcher.service.hub import Hub
from dispatcher.service.offer_log import OfferLog
from dispatcher.service.offers import Offers
from dispatcher.service.positions import Positions
from dispatcher.service.presence import Presence
from dispatcher.service.rate_limits import Limits
from dispatcher.service.rehydration import Picture
from dispatcher.service.snapshots import Snapshots
from dispatcher.service.trips import Trips
from dispatcher.service.wave_wakeups import Bell
from dispatcher.web.auth import Verifier
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.fastpath import make_runner
from dispatcher.web.handlers import Deps, build
from dispatcher.web.protocol import Frames
from dispatcher.web.websocket_endpoint import WebSockets
from dispatcher.zones_file import load_zones

log = structlog.get_logger("dispatcher")


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a server process that handlers and workers use."""

    settings: Settings
    zones: Zones
    pipeline: Pipeline
    scripts: Scripts
    database: Database
    ledger: Ledger
    picture: Picture
    road: Road
    limits: Limits
    positions: Positions
    trips: Trips
    drivers: Drivers
    bell: Bell
    rows: OfferLog
    offers: Offers
    presence: Presence
    snapshots: Snapshots


@contextlib.asynccontextmanager
async def services(settings: Settings, zones: Zones) -> AsyncIterator[Services]:
    """Opens the stores, loads every zone, and closes all of it again in reverse order."""
    assert settings.redis_url is not None
    assert settings.database_url is not None
    async with contextlib.AsyncExitStack() as stack:
        redis: Any = connect(settings.redis_url, cluster=settings.redis_cluster)
        stack.push_async_callback(redis.aclose)
        pipeline = Pipeline(redis)
        await pipeline.load_scripts()
        stack.push_async_callback(pipeline.close)
        scripts = Scripts(pipeline)
        settler = Settler(scripts, pipeline, fix_age_s=settings.fix_max_age_s)
        stack.callback(settler.close)
        database = await Database.open(
            settings.database_url,
            size=settings.database_pool,
            timeout_s=settings.commit_timeout_s,
        )
        stack.push_async_callback(database.close)
        ledger = Ledger(
            settings.database_url,
            timeout_s=settings.commit_timeout_s,
            most=settings.commit_batch,
        )
        await ledger.start()
        stack.push_async_callback(ledger.close)
        picture = Picture(pipeline, scripts, database, lease_ms=settings.claim_lease_ms)
        road = Road(
            scripts=scripts,
            picture=picture,
            ledger=ledger,
            settler=settler,
            database=database,
            lease_ms=settings.claim_lease_ms,
            key_ttl_s=settings.idempotency_ttl_s,
            halt_at=settings.halt_at,
        )
        limits = Limits(settings, scripts)
        homes = Homes(database)
        positions = Positions(
            pipeline=pipeline,
            scripts=scripts,
            picture=picture,
            database=database,
            homes=homes,
            fix_age_s=settings.fix_max_age_s,
        )
        bell, rows = Bell(), OfferLog()
        trips = Trips(
            road=road,
            zones=zones,
            limits=limits,
            bell=bell,
            rows=rows,
            key_ttl_s=settings.idempotency_ttl_s,
        )
        drivers = Drivers(
            road=road,
            zones=zones,
            limits=limits,
            homes=homes,
            positions=positions,
            bell=bell,
            key_ttl_s=settings.idempotency_ttl_s,
        )
        offers = Offers(
            zones=zones,
            scripts=scripts,
            picture=picture,
            trips=trips,
            rows=rows,
            fix_age_s=settings.fix_max_age_s,
        )
        presence = Presence(scripts=scripts, homes=homes, node=road.node, ttl_s=settings.presence_ttl_s)
        snapshots = Snapshots(scripts=scripts, picture=picture, database=database, homes=homes)
        for zone in zones.names():
            await picture.check_epoch(zone)
        yield Services(
            settings, zones, pipeline, scripts, database, ledger, picture, road, limits,
            positions, trips, drivers, bell, rows, offers, presence, snapshots,
        )  # fmt: skip


def workers(parts: Services) -> list[Periodic | Waves]:
    """The background jobs of one server process."""
    settings = parts.settings
    sweeper = Sweeper(
        zones=parts.zones,
        scripts=parts.scripts,
        picture=parts.picture,
        fix_age_s=settings.fix_max_age_s,
    )
    absence = Absence(
        zones=parts.zones,
        scripts=parts.scripts,
        drivers=parts.drivers,
        grace_s=settings.presence_grace_s,
    )
    return [
        Periodic("sweeper", settings.sweep_interval_s, sweeper),
        Periodic(
            "recorder", settings.position_flush_s, Recorder(parts.positions, parts.rows, parts.database)
        ),
        Periodic("cleanup", settings.cleanup_interval_s, Cleanup(parts.database)),
        Periodic("presence", min(10.0, settings.presence_ttl_s / 6), parts.presence.flush),
        Periodic("absence", settings.sweep_interval_s, absence),
        *(Waves(parts.offers, zone, parts.bell) for zone in parts.zones.names()),
    ]


async def run(
    settings: Settings, sock: socket.socket, on_ready: Callable[[], None], stop: asyncio.Event
) -> None:
    """Serves on a bound socket until `stop` is set, then drains and closes.

    Raises SettingsError where a key or zones file is wrong, StoreUnavailable where an engine is away.
    """
    verifier = Verifier.from_settings(settings)
    zones = load_zones(settings.zones_file)
    async with services(settings, zones) as parts:
        hub = Hub()
        frames = Frames(
            trips=parts.trips,
            drivers=parts.drivers,
            limits=parts.limits,
            key_required=settings.idempotency_required,
        )
        sockets = WebSockets(
            verify=verifier.verify,
            client_ip=ClientIp(settings.trusted_proxies),
            act=frames.act,
            locate=frames.locate,
            hub=hub,
            presence=parts.presence,
            snapshots=parts.snapshots,
            limits=parts.limits,
            allowed_origins=settings.allowed_origins,
            heartbeat_timeout_s=settings.presence_ttl_s,
        )
        metrics = Metrics()
        metrics.gauge("dispatcher_sockets", "Open WebSockets.", lambda: len(sockets))
        metrics.gauge("dispatcher_commits", "Batches sent.", lambda: parts.ledger.batches)
        metrics.gauge("dispatcher_changes", "Changes in them.", lambda: parts.ledger.changes)

        async def ready() -> tuple[bool, dict[str, Any]]:
            return await _readiness(parts, stop)

        web_app = build(
            Deps(
                settings=settings,
                verifier=verifier,
                trips=parts.trips,
                drivers=parts.drivers,
                limits=parts.limits,
                ready=ready,
                seen=parts.presence.seen_over_http,
                websocket=sockets.handle,
                metrics=metrics,
            )
        )
        push = Push(
            str(settings.redis_url),
            cluster=settings.redis_cluster,
            zones=zones.names(),
            deliver=hub.deliver,
            resync=hub.resync,
        )
        jobs = [
            *workers(parts),
            Periodic("sockets", min(1.0, settings.presence_ttl_s / 10), sockets.look_after),
        ]
        runner = make_runner(web_app)
        await push.start()
        await runner.setup()
        try:
            await web.SockSite(runner, sock, backlog=2048).start()
            for job in jobs:
                job.start()
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
            await asyncio.gather(*(job.stop() for job in jobs))
            await push.stop()
            with contextlib.suppress(StoreUnavailable):
                await parts.positions.save()
                await parts.rows.save(parts.database)
                await parts.rows.save(parts.database)


async def _readiness(parts: Services, stop: asyncio.Event) -> tuple[bool, dict[str, Any]]:
    """Whether both engines answer, and the server is not about to stop."""

    async def state(question: Any) -> str:
        try:
            async with asyncio.timeout(2):
                await question
        except (StoreUnavailable, TimeoutError):
            return "away"
        return "ok"

    redis, postgres = await asyncio.gather(
        state(parts.pipeline.command("PING")), state(parts.database.ping())
    )
    details = {"redis": redis, "postgres": postgres, "stopping": stop.is_set()}
    ready = redis == postgres == "ok" and not stop.is_set()
    return ready, {"status": "ready" if ready else "not ready", **details}
