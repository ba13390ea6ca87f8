"""What operators look up: trips, offers and drivers, from Postgres and in pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from dispatcher.core.actors import Role, address_of
from dispatcher.core.drivers import Driver
from dispatcher.core.errors import Refusal
from dispatcher.core.obstacles import Obstacle
from dispatcher.core.times import iso, millis, now_ms
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zones
from dispatcher.ledger.database import Database, driver_from_row, trip_from_row
from dispatcher.live.deliveries import DeliveryScripts
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.offers import OfferScripts
from dispatcher.live.presence import PresenceScripts
from dispatcher.live.state import Fix, StateScripts
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.service.authorities import Authorities
from dispatcher.service.commands.actions import zone_of_trip
from dispatcher.service.pages import Place, next_place
from dispatcher.service.queues import Queues
from dispatcher.service.reads import offer_from_row

#: How far back the latest trips are looked for: the first reach that fills a page is enough.
_REACHES: Final = (timedelta(minutes=10), timedelta(hours=2), timedelta(days=1), timedelta(days=60))
#: Of a driver, beside what they do now.
_LAST_TRIPS: Final = 10
_LAST_OFFERS: Final = 15


class OperatorReads:
    """Answers operators' questions; changes nothing. All raise StoreUnavailable."""

    def __init__(
        self,
        *,
        zones: Zones,
        database: Database,
        state: StateScripts,
        offers: OfferScripts,
        presence: PresenceScripts,
        views: ZoneViewScripts,
        queues: Queues,
        deliveries: DeliveryScripts,
        authorities: Authorities,
        fix_age_s: int,
    ) -> None:
        self._zones = zones
        self._database = database
        self._state = state
        self._offers = offers
        self._presence = presence
        self._views = views
        self._queues = queues
        self._deliveries = deliveries
        self._authorities = authorities
        self._fix_age_ms = fix_age_s * 1000

    def zones(self) -> list[dict[str, Any]]:
        """Every zone: its name, how it accepts, its outline as GeoJSON (None: without one), and its
        queues with theirs."""
        found = [self._zones.get(name) for name in self._zones.names()]
        return [
            {
                "name": zone.name,
                "accept_policy": zone.accept_policy,
                "outline": zone.area.outline() if zone.area is not None else None,
                "queues": [{"name": q.name, "outline": q.area.outline()} for q in zone.queues],
            }
            for zone in found
            if zone is not None
        ]

    async def trips(
        self,
        *,
        search: str | None,
        zone: str | None,
        statuses: Sequence[str] | None,
        after: str | None,
        limit: int,
    ) -> dict[str, Any]:
        """A page of trips, the latest change first, and where the `next` one begins.

        `search` is the id of a trip (with or without its zone), a customer or a driver.
        """
        start = Place.latest(after)
        common = {
            "zone": zone, "statuses": statuses, "before": start.moment, "before_id": start.id,
            "max_rows": limit,
        }  # fmt: skip
        if search:
            ids = [search, *(f"{name}_{search}" for name in self._zones.names())]
            rows = await self._database.rows("trips_of", ids=ids, party=search, **common)
        else:
            rows = []
            for reach in _REACHES:
                rows = await self._database.rows("recent_trips", since=start.moment - reach, **common)
                if len(rows) == limit:
                    break
        return {
            "trips": [trip_from_row(row).to_json() for row in rows],
            "next": next_place(rows, limit, time="updated_at", id_="id"),
        }

    async def pending(self, zone: str, after: str | None, limit: int) -> dict[str, Any]:
        """A page of a zone's pending trips, those that have waited longest first, each with its `wave`
        (0: none yet; None: Redis does not have the trip), when the next one is due, and who holds an
        open offer. Raises Refusal invalid_zone.
        """
        if self._zones.get(zone) is None:
            raise Refusal("invalid_zone")
        start = Place.oldest(after)
        rows = await self._database.rows(
            "pending_of_zone", zone=zone, after=start.moment, after_id=start.id, max_rows=limit
        )
        keys, ids = keys_of(zone), [row["id"] for row in rows]
        waves = await self._views.read_waves(keys, ids)
        due_ms = await self._offers.next_waves(keys, ids)
        trips = [
            {
                **trip_from_row(row).to_json(),
                "wave": waves[row["id"]].wave if waves[row["id"]].version >= 0 else None,
                "next_wave_at": iso(due_ms[row["id"]]),
                "offered_to": waves[row["id"]].drivers,
            }
            for row in rows
        ]
        last = next_place(rows, limit, time="created_at", id_="id")
        return {"zone": zone, "trips": trips, "next": last}

    async def dead_letters(self, zone: str, after: str | None, limit: int) -> dict[str, Any]:
        """A page of what receivers of the webhook have not taken in a zone, the latest first; `body` is
        the message as it was sent. Raises Refusal invalid_zone."""
        if self._zones.get(zone) is None:
            raise Refusal("invalid_zone")
        letters = await self._deliveries.dead_letters(keys_of(zone), after, limit)
        shown = [
            {
                "id": letter.id,
                "at": iso(letter.at_ms),
                **letter.fields,
                "attempts": int(letter.fields["attempts"]),
            }
            for letter in letters
        ]
        last = letters[-1].id if len(letters) == limit else None
        return {"zone": zone, "dead_letters": shown, "next": last}

    async def trip_offers(self, trip_id: str, after: str | None, limit: int) -> dict[str, Any]:
        """A page of a trip's offers, wave by wave; `score` is as in a timeline. Raises Refusal
        trip_not_found.

        Offers and their outcomes reach Postgres within some seconds of their time.
        """
        zone_of_trip(self._zones, trip_id)
        wave, _, driver = (after or "-1~").partition("~")
        rows = await self._database.rows(
            "page_of_trip_offers",
            trip_id=trip_id,
            after_wave=min(int(wave), 2**31 - 1) if int(wave) >= 0 else -1,
            after_driver=driver,
            max_rows=limit,
        )
        if not rows and await self._database.trip(trip_id) is None:
            raise Refusal("trip_not_found")
        last = f"{rows[-1]['wave']}~{rows[-1]['driver_id']}" if len(rows) == limit else None
        return {"trip_id": trip_id, "offers": [offer_from_row(row) for row in rows], "next": last}

    async def driver_offers(self, driver_id: str, after: str | None, limit: int) -> dict[str, Any]:
        """A page of the offers that a driver got, the latest first."""
        start = Place.latest(after)
        rows = await self._database.rows(
            "offers_of_driver", driver_id=driver_id, before=start.moment, before_id=start.id,
            max_rows=limit,
        )  # fmt: skip
        return {
            "driver_id": driver_id,
            "offers": [offer_from_row(row) for row in rows],
            "next": next_place(rows, limit, time="offered_at", id_="trip_id"),
        }

    async def drivers(
        self, *, search: str, zone: str | None, only_online: bool, after: str | None, limit: int
    ) -> dict[str, Any]:
        """A page of the drivers whose id begins with `search`, by id."""
        rows = await self._database.rows(
            "find_drivers", prefix=search, zone=zone, only_online=only_online, after=after or "",
            max_rows=limit,
        )  # fmt: skip
        found = [driver_from_row(row).to_json() for row in rows]
        return {"drivers": found, "next": rows[-1]["user_id"] if len(rows) == limit else None}

    async def driver(self, driver_id: str) -> dict[str, Any]:
        """A driver as they are now, and what keeps offers from them. Raises Refusal driver_not_found.

        `driver`; `fix` with its age in s, or None; `presence` until when, and its connections; `trip`,
        which they have; `offers` that are open; their place in a `queue`; `obstacles`, codes in the
        order in which they matter; their `last_trips` and `last_offers`, the latest first. While Redis
        is away, presence, offers and queue are None, and the rest is what Postgres knows.
        """
        saved = await self._database.driver(driver_id)
        if saved is None:
            raise Refusal("driver_not_found")
        now = await self._authorities.ask_redis(saved.zone, lambda: self._live_driver(saved))
        return {
            **(now or await self._saved_driver(saved)),
            "last_trips": await self._last_trips(driver_id),
            "last_offers": (await self.driver_offers(driver_id, None, _LAST_OFFERS))["offers"],
        }

    async def _live_driver(self, saved: Driver) -> dict[str, Any]:
        driver_id, keys = saved.user_id, keys_of(saved.zone)
        driver = await self._state.read_driver(keys, driver_id) or saved
        fix = await self._fix(keys, driver_id)
        address = address_of(Role.DRIVER, driver_id)
        present_ms, connections = await self._presence.connections_of(keys, address)
        offers = await self._offers.read_offers(keys, driver_id)
        trip = await self._trip_of(keys, driver)
        at_ms = now_ms()
        return {
            "driver": driver.to_json(),
            "fix": _fix_json(fix, at_ms),
            "presence": {
                "until": iso(present_ms),
                "connections": [
                    {"id": found.connection_id, "until": iso(found.ends_ms), **found.about}
                    for found in connections
                ],
            },
            "trip": trip.to_json() if trip else None,
            "offers": [
                {"trip_id": o.trip_id, "deadline": iso(o.deadline_ms), "expires_in_ms": o.left_ms}
                for o in offers
            ],
            "queue": await self._queues.place_of(driver),
            "obstacles": self._obstacles(driver, fix, present_ms, len(offers), at_ms),
        }

    async def _saved_driver(self, saved: Driver) -> dict[str, Any]:
        fix, at_ms = await self._saved_fix(saved.user_id), now_ms()
        trip = await self._database.trip(saved.trip_id) if saved.trip_id else None
        return {
            "driver": saved.to_json(),
            "fix": _fix_json(fix, at_ms),
            "presence": None,
            "trip": trip.to_json() if trip else None,
            "offers": None,
            "queue": None,
            "obstacles": saved.obstacles(at_ms - fix.at_ms if fix else None, self._fix_age_ms),
        }

    async def _last_trips(self, driver_id: str) -> list[dict[str, Any]]:
        found = await self.trips(
            search=driver_id, zone=None, statuses=None, after=None, limit=_LAST_TRIPS
        )
        return list(found["trips"])

    async def _fix(self, keys: Keys, driver_id: str) -> Fix | None:
        (seen,) = await self._views.read_drivers(keys, [driver_id])
        if seen.fix_ms:
            return Fix(seen.lat, seen.lng, seen.fix_ms)
        return await self._saved_fix(driver_id)

    async def _saved_fix(self, driver_id: str) -> Fix | None:
        row = await self._database.row("saved_position", driver_id=driver_id)
        return Fix(row["lat"], row["lng"], millis(row["location_updated_at"]) or 0) if row else None

    async def _trip_of(self, keys: Keys, driver: Driver) -> Trip | None:
        return await self._state.read_trip(keys, driver.trip_id) if driver.trip_id else None

    def _obstacles(
        self, driver: Driver, fix: Fix | None, present_ms: int | None, offers: int, at_ms: int
    ) -> list[Obstacle]:
        """What keeps offers from a driver, whatever the trip, as `lua/lib/candidates.lua` says."""
        zone = self._zones.get(driver.zone)
        found = driver.obstacles(at_ms - fix.at_ms if fix else None, self._fix_age_ms)
        if (present_ms or 0) <= at_ms:
            found.append(Obstacle.NOT_PRESENT)
        if offers >= (zone.offers_per_driver if zone is not None else 0):
            found.append(Obstacle.ENOUGH_OFFERS)
        return found


def _fix_json(fix: Fix | None, at_ms: int) -> dict[str, Any] | None:
    return fix and {
        "lat": fix.lat, "lng": fix.lng, "recorded_at": iso(fix.at_ms),
        "age_s": round(max(0, at_ms - fix.at_ms) / 1000, 1),
    }  # fmt: skip
