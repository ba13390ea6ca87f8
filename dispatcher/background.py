"""The background jobs of a server process, made from its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from dispatcher.comparison import drift_check
from dispatcher.composition import Services
from dispatcher.jobs.absent_drivers import AbsentDrivers
from dispatcher.jobs.cleanup import Cleanup
from dispatcher.jobs.degraded_zones import DegradedZones
from dispatcher.jobs.drift_watch import DriftWatch
from dispatcher.jobs.flush import Flush
from dispatcher.jobs.loop import JobLoop
from dispatcher.jobs.matching_rounds import MatchingRounds
from dispatcher.jobs.presence_flush import PresenceFlush
from dispatcher.jobs.queue_numbers import QueueNumbers
from dispatcher.jobs.reconcile import Reconcile
from dispatcher.jobs.upkeep import Upkeep
from dispatcher.jobs.waves import Waves
from dispatcher.jobs.webhook_delivery import WebhookDelivery
from dispatcher.jobs.zone_census import ZoneCensus
from dispatcher.jobs.zone_holder import HeldZone, HeldZoneJob, ZoneHolder
from dispatcher.live.servers import wave_settings
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.service.event_tail import EventTail

#: A quiet zone is looked at this often at least, in s.
_MAX_REST_S: Final = 10.0


def job_loops(parts: Services, holder: ZoneHolder | None = None) -> list[JobLoop | ZoneHolder]:
    """The background jobs of one server process; `holder` does the rounds of its share of the zones."""
    settings = parts.settings
    return [
        JobLoop(
            Flush(
                positions=parts.positions,
                queue_log=parts.queue_log,
                offer_log=parts.effects.offer_log,
                race_log=parts.effects.race_log,
                database=parts.ledger.database,
                interval_s=settings.position_flush_s,
            )
        ),
        JobLoop(Cleanup(parts.ledger.database, interval_s=settings.cleanup_interval_s)),
        JobLoop(presence_flush_job(parts)),
        JobLoop(degraded_zones_job(parts)),
        zone_holder(parts) if holder is None else holder,
    ]


def zone_holder(parts: Services) -> ZoneHolder:
    """What does the rounds of this server's share of the zones: most jobs are one a zone, so that each
    zone goes on alone."""

    def jobs(held: HeldZone) -> Sequence[JobLoop]:
        rounds = MatchingRounds(parts.offers, held.zone, fence=held.fence_text, wave_is_due=held.wake)
        rounding = JobLoop(rounds)
        rounds.subscribe(rounding.wake)
        waves = Waves(
            parts.offers, held.zone,
            fence=held.fence_text, hears=held.hears, hand_over=rounds.hand_over,
        )  # fmt: skip
        upkeep = upkeep_job(parts, held.zone, fence=held.fence_text, wave_is_due=held.wake)
        loops = [JobLoop(HeldZoneJob(waves, held)), JobLoop(HeldZoneJob(upkeep, held)), rounding]
        for deliveries in parts.webhook.deliveries:
            delivering = JobLoop(WebhookDelivery(deliveries, held.zone))
            deliveries.subscribe(held.zone, delivering.wake)
            loops.append(delivering)
        if (numbers := queue_numbers_job(parts, held.zone)) is not None:
            loops.append(JobLoop(numbers))
        return loops

    def waves(name: str) -> str:
        zone = parts.zones.get(name)
        assert zone is not None
        return wave_settings(zone, parts.settings.fix_max_age_s * 1000)

    return ZoneHolder(
        node=parts.presence.node,
        zones=parts.zones.names(),
        scripts=parts.live.servers,
        subscriber=parts.subscriber,
        jobs=jobs,
        waves=waves,
    )


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
    return DegradedZones(
        zones=parts.zones,
        authorities=parts.authorities,
        rehydration=parts.rehydration,
        catch_up=parts.catch_up,
        tail=tail,
        offers=parts.ledger_offers,
    )


def drift_watch_job(parts: Services, holder: ZoneHolder) -> DriftWatch:
    """The job that compares the zones that are held with Postgres, one after the other."""
    return DriftWatch(
        check=drift_check(parts.settings, parts.live, parts.ledger),
        scripts=parts.live.comparison,
        mending=parts.live.mending,
        zones=parts.zones.names(),
        held=holder.held,
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


def upkeep_job(
    parts: Services,
    zone: str,
    *,
    fence: Callable[[], str] = lambda: "",
    wave_is_due: Callable[[], None] = lambda: None,
) -> Upkeep:
    """The job that looks after a zone; an empty fence needs no holding of it."""
    settings = parts.settings
    return Upkeep(
        zone=zone,
        scripts=parts.live.servers,
        state=parts.live.state,
        reconcile=reconcile_job(parts, zone),
        absent=absent_drivers_job(parts, zone),
        outages=parts.outages,
        is_degraded=lambda: parts.authorities.of(zone).is_degraded,
        fence=fence,
        wave_is_due=wave_is_due,
        fix_age_s=settings.fix_max_age_s,
        grace_s=settings.presence_grace_s,
        # Whatever begins after a look is not due before the next one: a claim has its lease, and an
        # absence begins with what is left of a presence, or with the grace.
        max_rest_s=min(
            _MAX_REST_S,
            settings.claim_lease_ms / 1000,
            settings.presence_ttl_s / 4,
            settings.presence_grace_s,
        ),
        interval_s=settings.sweep_interval_s,
    )


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
