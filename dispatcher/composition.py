"""What a server process is made of: both wings, the services over them, and the background jobs."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from dispatcher.config import Settings
from dispatcher.core.zones import Zones
from dispatcher.live.keys import keys_of
from dispatcher.live.publisher import Publisher
from dispatcher.live.pubsub import Subscriber
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.loading import open_loading
from dispatcher.observe.series import know_zones
from dispatcher.observe.tracing import Tracing
from dispatcher.routing.osrm import OsrmRouting
from dispatcher.service.authorities import Authorities
from dispatcher.service.availability import AvailabilityService
from dispatcher.service.catch_up import CatchUp
from dispatcher.service.commands.command import SideEffects
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.customer_tracking import CustomerTracking
from dispatcher.service.driver_directory import DriverDirectory
from dispatcher.service.explanation import Explanation
from dispatcher.service.heat import HeatMaps
from dispatcher.service.hub import Hub
from dispatcher.service.ledger_claims import LedgerClaims
from dispatcher.service.ledger_decider import LedgerDecider
from dispatcher.service.ledger_offers import LedgerOffers
from dispatcher.service.ledger_rows import LedgerRows
from dispatcher.service.limit_seeds import open_seeds
from dispatcher.service.live_drivers import LiveDrivers
from dispatcher.service.local_limits import LocalLimits
from dispatcher.service.matched_rounds import MatchedRounds
from dispatcher.service.offer_log import OfferLog
from dispatcher.service.offers import Offers
from dispatcher.service.operator_offers import OperatorOffers
from dispatcher.service.operator_reads import OperatorReads
from dispatcher.service.outbox import Outbox
from dispatcher.service.positions import Positions
from dispatcher.service.presence import Presence
from dispatcher.service.presence_outages import PresenceOutages
from dispatcher.service.queue_log import QueueLog
from dispatcher.service.queues import Queues
from dispatcher.service.race_log import RaceLog
from dispatcher.service.rate_limits import RateLimits
from dispatcher.service.reads import Reads
from dispatcher.service.redis_decider import RedisDecider
from dispatcher.service.rehydration import Rehydration
from dispatcher.service.snapshots import Snapshots
from dispatcher.service.stranded_trips import StrandedTrips
from dispatcher.service.traced_coordinator import TracedCoordinator
from dispatcher.service.user_channels import UserChannels
from dispatcher.service.webhook import Webhook
from dispatcher.service.webhook_receivers import make_webhook
from dispatcher.wings import LedgerWing, LiveWing, open_ledger, open_live, open_subscriber


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a server process that handlers and jobs use."""

    settings: Settings
    zones: Zones
    live: LiveWing
    ledger: LedgerWing
    rehydration: Rehydration
    catch_up: CatchUp
    coordinator: Coordinator
    limits: RateLimits
    positions: Positions
    availability: AvailabilityService
    stranded_trips: StrandedTrips
    reads: Reads
    operator_reads: OperatorReads
    operator_offers: OperatorOffers
    ledger_offers: LedgerOffers
    explanation: Explanation
    offers: Offers
    matched_rounds: MatchedRounds
    webhook: Webhook
    presence: Presence
    outages: PresenceOutages
    snapshots: Snapshots
    effects: SideEffects
    subscriber: Subscriber
    channels: UserChannels
    authorities: Authorities
    hub: Hub
    rows: LedgerRows
    outbox: Outbox
    queues: Queues
    queue_log: QueueLog
    heat: HeatMaps


@contextlib.asynccontextmanager
async def services(
    settings: Settings, zones: Zones, tracing: Tracing | None = None
) -> AsyncIterator[Services]:
    """Opens both wings, loads every zone, and closes all of it again in reverse order."""
    know_zones(zones.names())
    async with (
        open_live(settings) as live,
        open_ledger(settings) as ledger,
        open_subscriber(settings) as subscriber,
        contextlib.AsyncExitStack() as stack,
    ):
        database = ledger.database
        node = secrets.token_hex(6)
        authorities = Authorities(
            zones.names(), database=database, pipeline=live.pipeline, state=live.state, node=node
        )
        await authorities.load()
        queue_log = QueueLog(zones, database)
        local = LocalLimits(lambda: authorities.servers)
        seeds = await stack.enter_async_context(open_seeds(local, live.limits, subscriber, settings))
        loading = await stack.enter_async_context(
            open_loading(settings, live, ledger, authorities, seeds, queue_log)
        )
        rehydration = loading.rehydration
        limits = RateLimits(settings, live.limits, local, authorities, rehydration.begin)
        directory = DriverDirectory(database)
        effects = SideEffects(OfferLog(), RaceLog(), directory)
        live.settler.on_withdrawn(effects.offer_log.record_withdrawn)
        hub = Hub()
        rows = LedgerRows(database)
        # Where nothing is traced, nothing is wrapped.
        make = partial(TracedCoordinator, tracing.tracer) if tracing else Coordinator
        coordinator = make(
            by_redis=RedisDecider(live.claims, live.settler, rehydration, local, authorities),
            by_ledger=LedgerDecider(LedgerClaims(rows, local), hub.deliver),
            authorities=authorities,
            commits=ledger.commits,
            database=database,
            limits=limits,
            effects=effects,
            node=node,
            lease_ms=settings.claim_lease_ms,
            commit_timeout_s=settings.commit_timeout_s,
            key_ttl_s=settings.idempotency_ttl_s,
            deadline_s=settings.request_deadline_s,
            halt_at=settings.halt_at,
        )
        stack.push_async_callback(coordinator.close)
        queues = Queues(
            zones=zones,
            scripts=live.queues,
            matching=live.matching,
            queue_log=queue_log,
            fix_age_s=settings.fix_max_age_s,
        )
        positions = Positions(
            scripts=live.positions,
            rehydration=rehydration,
            database=database,
            directory=directory,
            limits=limits,
            tracking=CustomerTracking(state=live.state, publisher=Publisher(live.pipeline)),
            zones=zones,
            queue_log=queue_log,
            authorities=authorities,
            rows=rows,
            fix_age_s=settings.fix_max_age_s,
        )
        presence = Presence(
            scripts=live.presence,
            directory=directory,
            authorities=authorities,
            node=node,
            ttl_s=settings.presence_ttl_s,
        )
        availability = AvailabilityService(
            coordinator=coordinator,
            zones=zones,
            directory=directory,
            positions=positions,
            presence=presence,
            fix_age_s=settings.fix_max_age_s,
        )
        drivers = LiveDrivers(
            state=live.state,
            rehydration=rehydration,
            directory=directory,
            database=database,
            authorities=authorities,
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
        webhook = make_webhook(settings, live.deliveries)
        stack.push_async_callback(webhook.close)
        offers = Offers(
            zones=zones,
            scripts=live.offers,
            rehydration=rehydration,
            coordinator=coordinator,
            offer_log=effects.offer_log,
            matched_rounds=matched_rounds,
            queues=queues,
            authorities=authorities,
            webhook=webhook,
            database=database,
            fix_age_s=settings.fix_max_age_s,
        )
        reads = Reads(
            zones=zones,
            database=database,
            drivers=drivers,
            offers=live.offers,
            positions=live.positions,
            authorities=authorities,
        )
        operator_reads = OperatorReads(
            zones=zones,
            database=database,
            state=live.state,
            offers=live.offers,
            presence=live.presence,
            views=ZoneViewScripts(live.pipeline),
            queues=queues,
            deliveries=live.deliveries,
            authorities=authorities,
            fix_age_s=settings.fix_max_age_s,
        )
        explanation = Explanation(
            zones=zones, scripts=live.inspection, database=database, authorities=authorities,
            fix_age_s=settings.fix_max_age_s,
        )  # fmt: skip
        ledger_offers = LedgerOffers(
            database=database, hub=hub, offer_log=effects.offer_log, fix_age_s=settings.fix_max_age_s
        )
        operator_offers = OperatorOffers(
            zones=zones, offers=offers, ledger_offers=ledger_offers, scripts=live.offers,
            positions=live.positions, explanation=explanation, database=database, limits=limits,
            authorities=authorities,
        )  # fmt: skip
        heat = HeatMaps(
            zones=zones,
            scripts=ZoneViewScripts(live.pipeline),
            clock=live.comparison,
            node=node,
            fix_age_s=settings.fix_max_age_s,
        )
        snapshots = Snapshots(
            state=live.state,
            offers=live.offers,
            positions=live.positions,
            database=database,
            drivers=drivers,
            queues=queues,
            authorities=authorities,
            fix_age_s=settings.fix_max_age_s,
        )
        channels = UserChannels(subscriber=subscriber, hub=hub, state=live.state, pipeline=live.pipeline)
        for close in (heat.close, presence.close, channels.stop):
            stack.push_async_callback(close)
        presence.on_moved = channels.moved
        live.pipeline.epochs = [keys_of(zone).epoch for zone in zones.names()]
        # Zones whose Redis another server cannot reach are loaded once they are given back.
        mine = [zone for zone in zones.names() if not authorities.of(zone).is_degraded]
        await rehydration.warm_all(mine)
        await webhook.begin(mine)
        yield Services(
            settings, zones, live, ledger, rehydration, loading.catch_up, coordinator, limits, positions,
            availability, stranded_trips, reads, operator_reads, operator_offers,
            ledger_offers, explanation, offers,
            matched_rounds, webhook, presence,
            PresenceOutages(
                zones.names(), ttl_s=settings.presence_ttl_s, grace_s=settings.presence_grace_s
            ),
            snapshots, effects, subscriber, channels,
            authorities, hub, rows,
            loading.outbox, queues, queue_log, heat,
        )  # fmt: skip
