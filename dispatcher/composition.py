"""What a server process is made of: both wings, the services over them, and the background jobs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from dispatcher.config import Settings
from dispatcher.core.zones import Zones
from dispatcher.jobs.absent_drivers import AbsentDrivers
from dispatcher.jobs.cleanup import Cleanup
from dispatcher.jobs.flush import Flush
from dispatcher.jobs.loop import JobLoop
from dispatcher.jobs.presence_flush import PresenceFlush
from dispatcher.jobs.reconcile import Reconcile
from dispatcher.jobs.waves import Waves
from dispatcher.ledger.commits import Commits
from dispatcher.ledger.database import Database
from dispatcher.ledger.outage_notices import OutageNotices
from dispatcher.live.claims import ClaimScripts
from dispatcher.live.client import connect
from dispatcher.live.keys import keys_of
from dispatcher.live.limits import LimitScripts
from dispatcher.live.matching import MatchScripts
from dispatcher.live.offers import OfferScripts
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.positions import PositionScripts
from dispatcher.live.presence import PresenceScripts
from dispatcher.live.pubsub import Publisher
from dispatcher.live.settle import Settler
from dispatcher.live.state import StateScripts
from dispatcher.routing.osrm import OsrmRouting
from dispatcher.service.availability import AvailabilityService
from dispatcher.service.commands.command import SideEffects
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.customer_tracking import CustomerTracking
from dispatcher.service.driver_directory import DriverDirectory
from dispatcher.service.matched_rounds import MatchedRounds
from dispatcher.service.offer_log import OfferLog
from dispatcher.service.offers import Offers
from dispatcher.service.outbox import Outbox
from dispatcher.service.positions import Positions
from dispatcher.service.presence import Presence
from dispatcher.service.presence_outages import PresenceOutages
from dispatcher.service.rate_limits import RateLimits
from dispatcher.service.reads import Reads
from dispatcher.service.rehydration import Rehydration
from dispatcher.service.snapshots import Snapshots
from dispatcher.service.stranded_trips import StrandedTrips
from dispatcher.service.wave_wakeups import WaveWakeups


@dataclass(frozen=True, slots=True)
class LiveWing:
    """What talks to Redis."""

    pipeline: Pipeline
    claims: ClaimScripts
    settler: Settler
    state: StateScripts
    offers: OfferScripts
    matching: MatchScripts
    positions: PositionScripts
    presence: PresenceScripts
    limits: LimitScripts


@dataclass(frozen=True, slots=True)
class LedgerWing:
    """What talks to Postgres."""

    commits: Commits
    database: Database
    notices: OutageNotices


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a server process that handlers and jobs use."""

    settings: Settings
    zones: Zones
    live: LiveWing
    ledger: LedgerWing
    rehydration: Rehydration
    coordinator: Coordinator
    limits: RateLimits
    positions: Positions
    availability: AvailabilityService
    stranded_trips: StrandedTrips
    reads: Reads
    offers: Offers
    matched_rounds: MatchedRounds
    presence: Presence
    outages: PresenceOutages
    snapshots: Snapshots
    effects: SideEffects


@contextlib.asynccontextmanager
async def open_live(settings: Settings) -> AsyncIterator[LiveWing]:
    """Connects to Redis, and lets go of it once everything was sent."""
    assert settings.redis_url is not None
    async with contextlib.AsyncExitStack() as stack:
        redis: Any = connect(settings.redis_url, cluster=settings.redis_cluster)
        stack.push_async_callback(redis.aclose)
        pipeline = Pipeline(redis)
        await pipeline.load_scripts()
        stack.push_async_callback(pipeline.close)
        settler = Settler(pipeline, fix_age_s=settings.fix_max_age_s)
        stack.callback(settler.close)
        yield LiveWing(
            pipeline, ClaimScripts(pipeline), settler, StateScripts(pipeline), OfferScripts(pipeline),
            MatchScripts(pipeline), PositionScripts(pipeline), PresenceScripts(pipeline),
            LimitScripts(pipeline),
        )  # fmt: skip


@contextlib.asynccontextmanager
async def open_ledger(settings: Settings) -> AsyncIterator[LedgerWing]:
    """Connects to Postgres, and lets go of it once everything is committed."""
    assert settings.database_url is not None
    async with contextlib.AsyncExitStack() as stack:
        database = await Database.open(
            settings.database_url,
            size=settings.database_pool,
            timeout_s=settings.commit_timeout_s,
        )
        stack.push_async_callback(database.close)
        commits = Commits(
            settings.database_url,
            timeout_s=settings.commit_timeout_s,
            max_batch=settings.commit_batch,
        )
        await commits.start()
        stack.push_async_callback(commits.close)
        notices = OutageNotices(settings.database_url, database, timeout_s=settings.commit_timeout_s)
        stack.callback(notices.close)
        yield LedgerWing(commits, database, notices)


@contextlib.asynccontextmanager
async def services(settings: Settings, zones: Zones) -> AsyncIterator[Services]:
    """Opens both wings, loads every zone, and closes all of it again in reverse order."""
    async with (
        open_live(settings) as live,
        open_ledger(settings) as ledger,
        contextlib.AsyncExitStack() as stack,
    ):
        database = ledger.database
        node = secrets.token_hex(6)
        outbox = Outbox(settler=live.settler, state=live.state, database=database)
        rehydration = Rehydration(live.state, database, outbox, lease_ms=settings.claim_lease_ms)
        stack.push_async_callback(rehydration.close)
        limits = RateLimits(settings, live.limits)
        directory = DriverDirectory(database)
        effects = SideEffects(WaveWakeups(), OfferLog(), directory)
        live.settler.on_withdrawn(effects.offer_log.record_withdrawn)
        coordinator = Coordinator(
            claims=live.claims,
            commits=ledger.commits,
            settler=live.settler,
            rehydration=rehydration,
            database=database,
            limits=limits,
            effects=effects,
            node=node,
            lease_ms=settings.claim_lease_ms,
            key_ttl_s=settings.idempotency_ttl_s,
            deadline_s=settings.request_deadline_s,
            halt_at=settings.halt_at,
        )
        stack.push_async_callback(coordinator.close)
        positions = Positions(
            scripts=live.positions,
            limit_scripts=live.limits,
            rehydration=rehydration,
            database=database,
            directory=directory,
            limits=limits,
            tracking=CustomerTracking(state=live.state, publisher=Publisher(live.pipeline)),
            zones=zones,
            fix_age_s=settings.fix_max_age_s,
        )
        availability = AvailabilityService(
            coordinator=coordinator, zones=zones, directory=directory, positions=positions
        )
        stranded_trips = StrandedTrips(
            coordinator=coordinator,
            zones=zones,
            database=database,
            limits=limits,
            customer_may_end_after_s=settings.customer_may_end_after_s,
        )
        routing = OsrmRouting()
        stack.push_async_callback(routing.close)
        matched_rounds = MatchedRounds(zones, live.matching, routing, fix_age_s=settings.fix_max_age_s)
        offers = Offers(
            zones=zones,
            scripts=live.offers,
            state=live.state,
            rehydration=rehydration,
            coordinator=coordinator,
            offer_log=effects.offer_log,
            matched_rounds=matched_rounds,
            fix_age_s=settings.fix_max_age_s,
        )
        reads = Reads(
            zones=zones,
            database=database,
            directory=directory,
            rehydration=rehydration,
            state=live.state,
            offers=live.offers,
            positions=live.positions,
        )
        presence = Presence(
            scripts=live.presence, directory=directory, node=node, ttl_s=settings.presence_ttl_s
        )
        outages = PresenceOutages(
            zones.names(), ttl_s=settings.presence_ttl_s, grace_s=settings.presence_grace_s
        )
        snapshots = Snapshots(
            state=live.state,
            offers=live.offers,
            rehydration=rehydration,
            database=database,
            directory=directory,
        )
        live.pipeline.epochs = [keys_of(zone).epoch for zone in zones.names()]
        await asyncio.gather(*(rehydration.warm(zone) for zone in zones.names()))
        yield Services(
            settings, zones, live, ledger, rehydration, coordinator, limits, positions,
            availability, stranded_trips, reads, offers, matched_rounds, presence, outages, snapshots,
            effects,
        )  # fmt: skip


def job_loops(parts: Services) -> list[JobLoop]:
    """The background jobs of one server process; most are one a zone, so that each goes on alone."""
    settings = parts.settings
    loops = [
        JobLoop(
            Flush(
                positions=parts.positions,
                offer_log=parts.effects.offer_log,
                database=parts.ledger.database,
                interval_s=settings.position_flush_s,
            )
        ),
        JobLoop(Cleanup(parts.ledger.database, interval_s=settings.cleanup_interval_s)),
        JobLoop(presence_flush_job(parts)),
    ]
    for zone in parts.zones.names():
        waves = JobLoop(Waves(parts.offers, zone))
        parts.effects.wakeups.subscribe(zone, waves.wake)
        loops += (waves, JobLoop(reconcile_job(parts, zone)), JobLoop(absent_drivers_job(parts, zone)))
    return loops


def presence_flush_job(parts: Services) -> PresenceFlush:
    """The job that tells of this server's connections."""
    interval_s = min(10.0, parts.settings.presence_ttl_s / 6)
    return PresenceFlush(parts.presence, parts.outages, parts.ledger.notices, interval_s=interval_s)


def reconcile_job(parts: Services, zone: str) -> Reconcile:
    """The job that puts right what servers left behind in a zone."""
    return Reconcile(
        zone=zone,
        claims=parts.live.claims,
        positions=parts.live.positions,
        rehydration=parts.rehydration,
        fix_age_s=parts.settings.fix_max_age_s,
        interval_s=parts.settings.sweep_interval_s,
    )


def absent_drivers_job(parts: Services, name: str) -> AbsentDrivers:
    """The job that takes the absent drivers of a zone offline."""
    zone = parts.zones.get(name)
    assert zone is not None
    return AbsentDrivers(
        zone=zone,
        presence=parts.live.presence,
        state=parts.live.state,
        rehydration=parts.rehydration,
        database=parts.ledger.database,
        availability=parts.availability,
        outages=parts.outages,
        notices=parts.ledger.notices,
        node=parts.presence.node,
        ttl_s=parts.settings.presence_ttl_s,
        grace_s=parts.settings.presence_grace_s,
        interval_s=parts.settings.sweep_interval_s,
    )
