"""The background jobs of a server process, made from its parts."""

from __future__ import annotations

from dispatcher.comparison import drift_check
from dispatcher.composition import Services
from dispatcher.jobs.absent_drivers import AbsentDrivers
from dispatcher.jobs.cleanup import Cleanup
from dispatcher.jobs.degraded_zones import DegradedZones
from dispatcher.jobs.drift_watch import DriftWatch
from dispatcher.jobs.flush import Flush
from dispatcher.jobs.loop import JobLoop
from dispatcher.jobs.presence_flush import PresenceFlush
from dispatcher.jobs.queue_numbers import QueueNumbers
from dispatcher.jobs.reconcile import Reconcile
from dispatcher.jobs.waves import Waves
from dispatcher.jobs.webhook_delivery import WebhookDelivery
from dispatcher.jobs.zone_census import ZoneCensus
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.service.event_tail import EventTail
from dispatcher.service.ledger_offers import LedgerOffers


def job_loops(parts: Services) -> list[JobLoop]:
    """The background jobs of one server process; most are one a zone, so that each goes on alone."""
    settings = parts.settings
    loops = [
        JobLoop(
            Flush(
                positions=parts.positions,
                queue_log=parts.queue_log,
                offer_log=parts.effects.offer_log,
                database=parts.ledger.database,
                interval_s=settings.position_flush_s,
            )
        ),
        JobLoop(Cleanup(parts.ledger.database, interval_s=settings.cleanup_interval_s)),
        JobLoop(presence_flush_job(parts)),
        JobLoop(degraded_zones_job(parts)),
    ]
    for zone in parts.zones.names():
        waves = JobLoop(Waves(parts.offers, zone))
        parts.effects.wakeups.subscribe(zone, waves.wake)
        loops += (waves, JobLoop(reconcile_job(parts, zone)), JobLoop(absent_drivers_job(parts, zone)))
        if (numbers := queue_numbers_job(parts, zone)) is not None:
            loops.append(JobLoop(numbers))
        for deliveries in parts.webhook.deliveries:
            delivering = JobLoop(WebhookDelivery(deliveries, zone))
            deliveries.subscribe(zone, delivering.wake)
            loops.append(delivering)
    return loops


def queue_numbers_job(parts: Services, name: str) -> QueueNumbers | None:
    """The job that numbers a zone's queues, if it has any."""
    zone = parts.zones.get(name)
    if zone is None or not zone.queues:
        return None
    return QueueNumbers(
        zone=zone,
        queues=parts.queues,
        scripts=parts.live.queues,
        authorities=parts.authorities,
        node=parts.presence.node,
        interval_s=parts.settings.sweep_interval_s,
    )


def degraded_zones_job(parts: Services) -> DegradedZones:
    """The job that looks after zones whose Redis is away."""
    database = parts.ledger.database
    tail = EventTail(
        outbox=parts.outbox, database=database, deliver=parts.hub.deliver, node=parts.presence.node
    )
    offers = LedgerOffers(
        database=database,
        hub=parts.hub,
        offer_log=parts.effects.offer_log,
        fix_age_s=parts.settings.fix_max_age_s,
    )
    return DegradedZones(
        zones=parts.zones,
        authorities=parts.authorities,
        rehydration=parts.rehydration,
        tail=tail,
        offers=offers,
        wakeups=parts.effects.wakeups,
    )


def drift_watch_job(parts: Services) -> DriftWatch:
    """The job that compares the zones with Postgres, one after the other."""
    return DriftWatch(
        check=drift_check(parts.settings, parts.live, parts.ledger),
        scripts=parts.live.comparison,
        mending=parts.live.mending,
        zones=parts.zones.names(),
        authorities=parts.authorities,
        node=parts.presence.node,
        interval_s=parts.settings.drift_interval_s,
    )


def zone_census_job(parts: Services) -> ZoneCensus:
    """The job that counts what is in each zone."""
    return ZoneCensus(ZoneViewScripts(parts.live.pipeline), parts.zones.names())


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
        authorities=parts.authorities,
        node=parts.presence.node,
        ttl_s=parts.settings.presence_ttl_s,
        grace_s=parts.settings.presence_grace_s,
        interval_s=parts.settings.sweep_interval_s,
    )
