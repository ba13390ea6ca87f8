"""The outbox: `trip_events` holds what was committed, and what nobody settled is settled from there.

A server may die between its commit and its settle, or Redis may lose what it was told. Whoever finds
that out settles the events in their order, as their own server would have: the stream, the sockets,
the offers, the waves and the driver learn of them. An event may be told twice, and never not at all;
trip and version tell one from another.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import orjson
import structlog

from dispatcher.core.actors import Actor, Role, address_of
from dispatcher.core.times import millis, moment
from dispatcher.core.transitions import TRANSITIONS, DriverEffect, Event, Transition
from dispatcher.core.trips import ACTIVE, DEFAULT_VEHICLE_TYPE, Status, Trip
from dispatcher.ledger.database import Database, trip_from_row
from dispatcher.live.claims import Attempt
from dispatcher.live.event_stream import EventStream
from dispatcher.live.keys import Keys
from dispatcher.live.settle import EVENTS_KEPT, Settler
from dispatcher.live.settlement import Message, SettleEffect, Settlement
from dispatcher.live.state import StateScripts
from dispatcher.observe.series import REPAIRED
from dispatcher.service.commands.transition import transition_settlement
from dispatcher.service.messages import stream_event, trip_json, trip_messages

log = structlog.get_logger("dispatcher.outbox")

#: Trips whose histories are read together; fewer where requests do not wait for it.
_MAX_TRIPS: Final = 500
_FEW_TRIPS: Final = 100
#: Actions of one event do the same to a trip, whoever took them.
TRANSITION_OF: Final[Mapping[str, Transition]] = {t.event: t for t in TRANSITIONS}


class PastEvent(NamedTuple):
    """A row of `trip_events`."""

    version: int
    event: Event
    actor: Actor
    payload: dict[str, Any]
    at_ms: int

    @classmethod
    def from_row(cls, row: Any) -> PastEvent:
        """The event that a row holds."""
        return cls(
            row["version"], Event(row["event"]), Actor(row["actor_id"], Role(row["actor_role"])),
            orjson.loads(row["payload"]), millis(row["created_at"]) or 0,
        )  # fmt: skip

    @property
    def attempt(self) -> str:
        """The token of the attempt that wrote it."""
        return str(self.payload.get("attempt", ""))

    @property
    def claimed_driver(self) -> str:
        """The driver whose claim the attempt held beside the trip's, or empty."""
        if self.event is Event.ACCEPTED:
            return str(self.payload["driver_id"])
        if self.payload.get("reason") == "driver_offline":
            return str(self.payload.get("former_driver", self.actor.user_id))
        return ""


class Outbox:
    """Settles what was committed and not settled. All raise StoreUnavailable."""

    def __init__(
        self, *, settler: Settler, state: StateScripts, stream: EventStream, database: Database
    ) -> None:
        self._settler = settler
        self._state = state
        self._database = database
        self._stream = stream

    async def settle_missed(self, keys: Keys, trip: Trip, *, attempt: str = "") -> int:
        """Settles the events of a trip that are newer than its hash in Redis, and the one that the
        attempt of this token wrote, or the attempt that holds the trip's claim. Returns how many.

        A trip without a hash has nothing to compare with: only the attempt's event is settled.
        """
        known = await self._state.version_of(keys, trip.id)
        attempt = attempt or await self._state.changed_by(keys, trip.id)
        if not attempt and (known is None or known >= trip.version):
            return 0
        rows = await self._database.rows("timeline", trip_id=trip.id)
        history = [PastEvent.from_row(row) for row in rows]
        missed = [
            event.version
            for event in history
            if (known is not None and event.version > known) or (attempt and event.attempt == attempt)
        ]
        await self._settle(keys, trip, history, missed)
        return len(missed)

    async def settle_unheard(self, keys: Keys, since_ms: int | None) -> int:
        """Settles the events of a zone, which is being loaded, that its stream may not have told, and
        those of the same trips that came after. `since_ms` is that of `UnheardEvents`. Returns how many.
        """
        first = await self._first_unheard(keys, since_ms)
        ids = list(first)
        settled = 0
        for start in range(0, len(ids), _MAX_TRIPS):
            await self._state.go_on_loading(keys)
            settled += await self._settle_trips(keys, ids[start : start + _MAX_TRIPS], first)
        return settled

    async def tell_unheard(
        self, keys: Keys, since_ms: int | None, *, go_on: Callable[[Keys], Awaitable[None]]
    ) -> int:
        """Tells stream and sockets of the same events, while Postgres decides without Redis. What they
        change there comes with the load. Returns how many."""
        first = await self._first_unheard(keys, since_ms)
        ids = list(first)
        told = 0
        for start in range(0, len(ids), _FEW_TRIPS):
            await go_on(keys)
            histories = await self._histories(ids[start : start + _FEW_TRIPS])
            counts = await asyncio.gather(
                *(self._tell(keys, trip, history, first[trip.id]) for trip, history in histories)
            )
            told += sum(counts)
        return told

    async def _tell(self, keys: Keys, trip: Trip, history: Sequence[PastEvent], first: int) -> int:
        past = _past(trip, history)
        unheard = [event for event in history if event.version >= first and event.version in past]
        for event in unheard:
            before, after = past.get(event.version - 1), past[event.version]
            # Sockets, too: what Redis had claimed before it went away was told to none.
            await self._settler.tell(keys, _settlement(event, before, after, ()))
        return len(unheard)

    async def _first_unheard(self, keys: Keys, since_ms: int | None) -> dict[str, int]:
        """The first version of each trip that the stream may not have told."""
        rows = [] if since_ms is None else await self._events_since(keys, since_ms)
        heard = await self._stream.heard_since(keys, since_ms or 0) if rows else set()
        first: dict[str, int] = {}
        for row in rows:
            trip_id, version = row["trip_id"], row["version"]
            if (trip_id, version) not in heard:
                first[trip_id] = min(version, first.get(trip_id, version))
        return first

    async def _events_since(self, keys: Keys, since_ms: int) -> list[Any]:
        return await self._database.rows(
            "events_of_zone_since", prefix=keys.zone + "_", since=moment(since_ms), max_rows=EVENTS_KEPT
        )

    async def _settle_trips(self, keys: Keys, ids: Sequence[str], first: Mapping[str, int]) -> int:
        """Settles the events of trips from their first missed version on; returns how many.

        What came after a missed event is settled once more, although it was heard: a trip that ended is
        not loaded, and would be left in the state that the missed event gave it. What came after is told
        by the version: by the clock of another Redis it may seem to have been long before.
        """
        histories = await self._histories(ids)
        missed = {
            trip.id: [event.version for event in history if event.version >= first[trip.id]]
            for trip, history in histories
        }
        await asyncio.gather(
            *(self._settle(keys, trip, history, missed[trip.id]) for trip, history in histories)
        )
        return sum(map(len, missed.values()))

    async def messages_of(self, events: Sequence[tuple[str, int]]) -> list[Message]:
        """What sockets are to be told of these trips and versions."""
        ids = sorted({trip_id for trip_id, _ in events})
        wanted: dict[str, set[int]] = defaultdict(set)
        for trip_id, version in events:
            wanted[trip_id].add(version)
        messages: list[Message] = []
        for start in range(0, len(ids), _MAX_TRIPS):
            for trip, history in await self._histories(ids[start : start + _MAX_TRIPS]):
                past = _past(trip, history)
                for event in history:
                    if event.version in wanted[trip.id] and event.version in past:
                        before = past.get(event.version - 1)
                        messages += _settlement(event, before, past[event.version], ()).messages
        return messages

    async def _histories(self, ids: Sequence[str]) -> list[tuple[Trip, list[PastEvent]]]:
        trips = [trip_from_row(row) for row in await self._database.rows("trips_by_id", ids=ids)]
        histories: dict[str, list[PastEvent]] = defaultdict(list)
        for row in await self._database.rows("events_of_trips", ids=[trip.id for trip in trips]):
            histories[row["trip_id"]].append(PastEvent.from_row(row))
        return [(trip, histories[trip.id]) for trip in trips]

    async def _settle(
        self, keys: Keys, trip: Trip, history: Sequence[PastEvent], missed: Sequence[int]
    ) -> None:
        past = _past(trip, history)
        for event in history:
            if event.version not in missed or event.version not in past:
                continue
            attempt = Attempt(
                token=event.attempt, trip_id=trip.id, driver_id=event.claimed_driver,
                lease_ms=0, key=None, key_ttl_ms=0,
            )  # fmt: skip
            offered = await self._state.offered_to(keys, trip.id)
            settlement = _settlement(event, past.get(event.version - 1), past[event.version], offered)
            if settlement.effect is SettleEffect.TAKE and settlement.driver_id != _holder(trip):
                # They have had it: by now they may be free, or have another, which is what counts.
                settlement = replace(settlement, driver_id="", driver_vehicle_type="", effect=None)
            if settlement.driver_id and not settlement.driver_vehicle_type:
                vehicle_type = await self._vehicle_of(keys, settlement.driver_id)
                settlement = replace(settlement, driver_vehicle_type=vehicle_type)
            await self._settler.settle(keys, attempt, settlement)
            REPAIRED.add("missed_event")
            log.info(
                "missed event settled", zone=keys.zone, trip_id=trip.id, version=event.version,
                trip_event=event.event,
            )  # fmt: skip

    async def _vehicle_of(self, keys: Keys, driver_id: str) -> str:
        known = await self._state.read_driver(keys, driver_id)
        if known is not None and known.vehicle_type:
            return known.vehicle_type
        driver = await self._database.driver(driver_id)
        return driver.vehicle_type if driver else DEFAULT_VEHICLE_TYPE


def _holder(trip: Trip) -> str | None:
    """The driver whose trip it is now."""
    return trip.driver_id if trip.current_status in ACTIVE else None


def _past(trip: Trip, history: Sequence[PastEvent]) -> dict[int, Trip]:
    """The trip after each of its events, by version."""
    # The row is the last version itself, and knows what no event tells.
    past = {version: then for version, then in replay(trip, history).items() if version < trip.version}
    past[trip.version] = trip
    return past


def replay(trip: Trip, history: Sequence[PastEvent]) -> dict[int, Trip]:
    """The trip after each of its events, by version. Of the row itself only what a trip is created with
    is used."""
    created = {
        "updated_at": trip.created_at,
        "dropoff_lat": trip.dropoff_lat,
        "dropoff_lng": trip.dropoff_lng,
    }
    now = trip._replace(**(Trip._field_defaults | created))
    past: dict[int, Trip] = {}
    for event in history:
        if event.event is not Event.CREATED:
            now = TRANSITION_OF[event.event].apply(now, event.at_ms)
            now = now._replace(
                current_status=Status(event.payload["current_status"]),
                driver_id=event.payload["driver_id"],
            )
        if event.event is Event.CANCELLED:
            now = now._replace(cancel_reason=event.payload.get("reason"))
        past[event.version] = now
    return past


def _settlement(
    event: PastEvent, before: Trip | None, after: Trip, offered: Sequence[str]
) -> Settlement:
    as_json = trip_json(after)
    if before is None:
        return Settlement(
            trip=after,
            event=stream_event(event.event, event.actor, event.at_ms, as_json),
            messages=trip_messages(event.event, after, as_json),
            arrives=address_of(Role.CUSTOMER, after.customer_id),
        )
    transition = TRANSITION_OF[event.event]
    settlement = transition_settlement(transition, event.actor, before, after, as_json, offered)
    barred = before.driver_id if transition.driver is DriverEffect.CLEARED else ""
    # The hash may be of any version: the whole trip is sent.
    return replace(settlement, before=None, barred_driver=barred or "")
