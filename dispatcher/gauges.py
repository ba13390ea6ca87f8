"""What a server process tells of its parts whenever its metrics are rendered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version

from dispatcher.composition import Services
from dispatcher.core.actors import Role
from dispatcher.jobs.drift_watch import DriftWatch
from dispatcher.jobs.engine_watch import EngineWatch
from dispatcher.jobs.zone_census import ZoneCensus
from dispatcher.jobs.zone_holder import ZoneHolder
from dispatcher.observe.metrics import Metrics
from dispatcher.service.zone_views import ZoneViews
from dispatcher.web.door import REFUSAL_REASONS, Door
from dispatcher.web.websocket_endpoint import WebSocketEndpoint

Read = Mapping[tuple[str, ...], float]


def add_gauges(
    metrics: Metrics,
    parts: Services,
    *,
    door: Door,
    sockets: WebSocketEndpoint,
    views: ZoneViews,
    drift: DriftWatch,
    engines: EngineWatch,
    census: ZoneCensus,
    holder: ZoneHolder,
) -> None:
    """Add to `metrics` what the parts of a process know anyway."""
    metrics.labelled_gauge(
        "dispatcher_build_info", "The version that runs; its value is 1.", ("version",),
        lambda: {(version("redis-trip-dispatcher"),): 1},
    )  # fmt: skip
    _add_connections(metrics, parts, door, sockets, views)
    _add_queues(metrics, parts)
    metrics.gauge("dispatcher_zones_held", "Zones whose rounds this server does.", lambda: len(holder))
    metrics.labelled_counter(
        "dispatcher_channel_messages", "Messages from other servers.", "about",
        parts.channels.messages,
    )  # fmt: skip
    _add_degraded(metrics, parts)
    for part in (parts.matched_rounds, parts.queues, parts.heat):
        part.tell(metrics)
    metrics.labelled_counter(
        "dispatcher_webhook_deliveries", "Webhook calls.", "outcome", parts.webhook.counts
    )
    metrics.gauge(
        "dispatcher_webhook_pause_seconds", "How long a receiver is still left alone.",
        parts.webhook.pause_s,
    )  # fmt: skip
    metrics.labelled_gauge(
        "dispatcher_drift", "Things that differ between Redis and Postgres.", ("zone", "kind"),
        drift.found,
    )  # fmt: skip
    metrics.labelled_gauge(
        "dispatcher_engine_up", "Whether an engine can write: 1 or 0.", ("engine",), engines.up
    )
    for name, documentation in (
        ("waiting_trips", "Trips that wait for a driver."),
        ("free_drivers", "Drivers who may be offered a trip."),
        ("drivers_with_fix", "Drivers with a position that counts."),
    ):
        metrics.labelled_gauge(
            f"dispatcher_{name}", documentation, ("zone",), partial(census.numbers, name)
        )


def _add_connections(
    metrics: Metrics, parts: Services, door: Door, sockets: WebSocketEndpoint, views: ZoneViews
) -> None:
    def sockets_by_role() -> Read:
        open_now = Counter(sockets.roles())
        return {(role,): open_now[role] for role in (Role.DRIVER, Role.CUSTOMER, Role.ADMIN)}

    metrics.gauge("dispatcher_connections", "Open connections.", lambda: len(door))
    metrics.labelled_counter(
        "dispatcher_connections_refused", "Connections refused, or ended before their time.", "reason",
        lambda: dict.fromkeys(REFUSAL_REASONS, 0) | dict(door.refused),
    )  # fmt: skip
    metrics.labelled_gauge("dispatcher_sockets", "Open WebSockets.", ("role",), sockets_by_role)
    metrics.gauge("dispatcher_zone_viewers", "Sockets that watch a zone.", views.viewers)
    metrics.gauge(
        "dispatcher_present_connections", "Connections whose users this server keeps present.",
        lambda: len(parts.presence.connections),
    )  # fmt: skip


def _add_queues(metrics: Metrics, parts: Services) -> None:
    commits = parts.ledger.commits
    metrics.counter("dispatcher_commits", "Batches sent.", lambda: commits.batches)
    metrics.counter("dispatcher_changes", "Changes in them.", lambda: commits.changes)
    metrics.labelled_gauge(
        "dispatcher_commit_queue_changes", "Changes that wait for a commit.", ("state",),
        lambda: _by_label(commits.queue()),
    )  # fmt: skip
    metrics.gauge(
        "dispatcher_redis_queue_calls", "Calls that wait for a write to Redis.",
        parts.live.pipeline.queue,
    )  # fmt: skip
    metrics.labelled_gauge(
        "dispatcher_background_attempts",
        "Committed changes that Redis has not been told of, and claims that are let go of.", ("kind",),
        lambda: _by_label(parts.coordinator.waiting()),
    )  # fmt: skip
    metrics.labelled_gauge(
        "dispatcher_unsaved_rows", "Rows that wait for Postgres.", ("kind",),
        lambda: _by_label(
            {
                "positions": len(parts.positions.unsaved),
                **parts.effects.offer_log.unsaved(),
                "races": parts.effects.race_log.unsaved(),
            }
        ),
    )  # fmt: skip


def _add_degraded(metrics: Metrics, parts: Services) -> None:
    authorities, pipeline, mending = parts.authorities, parts.live.pipeline, parts.live.mending
    metrics.labelled_gauge(
        "dispatcher_degraded", "Whether Postgres decides about a zone alone: 1 or 0.", ("zone",),
        lambda: {(zone,): authorities.of(zone).is_degraded for zone in parts.zones.names()},
    )  # fmt: skip
    metrics.counter(
        "dispatcher_redis_left_alone", "Times that a node of Redis was left alone, being no help.",
        pipeline.times_left_alone,
    )  # fmt: skip
    metrics.counter("dispatcher_values_dropped", "Corrupt values in Redis.", lambda: mending.dropped)


def _by_label(numbers: Mapping[str, int]) -> Read:
    return {(label,): number for label, number in numbers.items()}
