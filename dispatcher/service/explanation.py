"""Why a driver gets a trip or does not: what each filter says now, and what has happened so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from dispatcher.core.actors import Role
from dispatcher.core.drivers import Driver
from dispatcher.core.errors import Refusal
from dispatcher.core.obstacles import ROUND_OF_MATCHING, Obstacle
from dispatcher.core.times import iso, millis
from dispatcher.core.transitions import Event
from dispatcher.core.trips import Status, Trip
from dispatcher.core.zones import Zone, Zones
from dispatcher.ledger.database import Database
from dispatcher.live.inspection import FilterView, InspectionScripts
from dispatcher.live.keys import keys_of
from dispatcher.matching.model import Score
from dispatcher.service.authorities import Authorities
from dispatcher.service.commands.actions import zone_of_trip
from dispatcher.service.filters_without_redis import NOT_KNOWN, filters_without_redis
from dispatcher.service.offers import CANDIDATES_PER_OFFER, MORE_CANDIDATES

#: What an offer came to, as a verdict and in words.
_OF_AN_OFFER: Final = {
    "open": ("on_offer", "was offered the trip at {at}"),
    "accepted": ("accepted", "was offered the trip at {at} and accepted it"),
    "declined": ("declined", "declined the trip at {at}"),
    "expired": ("let_it_pass", "was offered the trip at {at} and let it pass"),
    "withdrawn": ("withdrawn", "was offered the trip at {at}, which was withdrawn at {until}"),
}


#: What an offer by hand asks as well.
_BY_HAND: Final = frozenset(
    {
        "offline", "unavailable", "active_trip", "other_vehicle_type", "no_position", "stale_position",
        "not_present", "barred", "enough_offers",
    }
)  # fmt: skip


class Explanation:
    """Explains; changes nothing. All raise StoreUnavailable."""

    def __init__(
        self,
        *,
        zones: Zones,
        scripts: InspectionScripts,
        database: Database,
        authorities: Authorities,
        fix_age_s: int,
    ) -> None:
        self._authorities = authorities
        self._zones = zones
        self._scripts = scripts
        self._database = database
        self._fix_age_ms = fix_age_s * 1000

    async def why(self, trip_id: str, driver_id: str) -> dict[str, Any]:
        """The `verdict` (a code or several, and a sentence), the `filters` of the trip's next wave, each
        named by what it keeps back (`core.obstacles`), with `passes` (null where it could not be asked)
        and `saw`, the `score` by which a round of matching last ranked the driver for the trip (or their
        place in its queue; None: neither did), with those of the others; and the `history` of both.
        While Redis is away, Postgres knows some of the filters.

        Raises Refusal trip_not_found, driver_not_found.
        """
        zone = zone_of_trip(self._zones, trip_id)
        trip, driver = await self._database.trip(trip_id), await self._database.driver(driver_id)
        if trip is None:
            raise Refusal("trip_not_found")
        if driver is None:
            raise Refusal("driver_not_found")
        asked = await self._authorities.ask_redis(
            zone.name, lambda: self._filters(zone, trip, driver_id)
        )
        filters = [_zone_filter(zone, driver), *(asked or filters_without_redis(trip, driver))]
        offers = await self._database.rows("offers_of_trip", trip_id=trip.id, driver_id=None)
        history = await self._history(trip, driver_id, offers)
        return {
            "trip_id": trip_id,
            "driver_id": driver_id,
            "current_status": trip.current_status,
            "verdict": _verdict(trip, driver_id, filters, history, is_known=asked is not None),
            "filters": [
                {"filter": view.name, "passes": view.passes, "saw": view.saw} for view in filters
            ],
            "score": _score(offers, driver_id),
            "history": history,
        }

    async def _filters(self, zone: Zone, trip: Trip, driver_id: str) -> list[FilterView]:
        queue = zone.queue_at(trip.pickup_lat, trip.pickup_lng)
        return await self._scripts.why(
            keys_of(zone.name), trip.id, driver_id,
            fix_age_ms=self._fix_age_ms, max_open_offers=zone.offers_per_driver,
            candidates_per_offer=CANDIDATES_PER_OFFER, more_candidates=MORE_CANDIDATES,
            queue=queue.name if queue else "", waves=zone.waves,
        )  # fmt: skip

    async def refusing(self, zone: Zone, trip: Trip, driver_id: str) -> list[FilterView]:
        """The filters that would refuse a driver whom an operator offers the trip: those of the driver,
        not those of the wave that is next."""
        views = await self._filters(zone, trip, driver_id)
        return [view for view in views if view.passes is False and view.name in _BY_HAND]

    async def _history(
        self, trip: Trip, driver_id: str, offers: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """What the driver was offered of the trip and did with it, and who took it; in order."""
        lines: list[tuple[int, str, str]] = []
        for row in offers:
            if row["driver_id"] != driver_id:
                continue
            at, until = millis(row["offered_at"]) or 0, millis(row["outcome_at"])
            code, text = _OF_AN_OFFER[row["outcome"]]
            lines.append((at, code, text.format(at=iso(at), until=iso(until))))
        races = await self._database.rows("races_of_trip", trip_id=trip.id, driver_id=driver_id)
        late_ms = {row["version"]: millis(row["tried_at"]) or 0 for row in races}
        for row in await self._database.rows("timeline", trip_id=trip.id):
            at = millis(row["created_at"]) or 0
            is_theirs = row["actor_id"] == driver_id and row["actor_role"] == Role.DRIVER
            if row["event"] == Event.ACCEPTED and not is_theirs:
                # The actor may be an operator, who assigned it: the payload has who got it.
                winner = orjson.loads(row["payload"])["driver_id"]
                by = "" if row["actor_role"] == Role.DRIVER else f", by the operator {row['actor_id']}"
                if winner == driver_id:
                    lines.append((at, row["event"], f"was given the trip at {iso(at)}{by}"))
                    continue
                lines.append((at, "taken", f"driver {winner} took the trip at {iso(at)}{by}"))
                if (tried_ms := late_ms.get(row["version"])) is not None:
                    text = f"lost the race by {tried_ms - at} ms, at {iso(tried_ms)}"
                    lines.append((tried_ms, "lost_the_race", text))
            elif is_theirs:
                lines.append((at, row["event"], f"{row['event']}, by this driver, at {iso(at)}"))
        return [{"code": code, "at": iso(at), "text": text} for at, code, text in sorted(lines)]


def _zone_filter(zone: Zone, driver: Driver) -> FilterView:
    saw = f"works in {driver.zone}, and the trip is in {zone.name}"
    return FilterView(Obstacle.OTHER_ZONE, driver.zone == zone.name, saw)


def _score(offers: Sequence[Mapping[str, Any]], driver_id: str) -> dict[str, Any] | None:
    """The score of the driver's last offer; of who had none, the one beside another's last offer."""
    scored = [{**row, "score": orjson.loads(row["score"])} for row in reversed(offers) if row["score"]]
    for row in scored:
        if row["driver_id"] == driver_id:
            own: dict[str, Any] = row["score"]
            return own
    for row in scored:
        score = row["score"]
        others = score.pop("next", [])
        for ranked in others:
            if ranked["driver_id"] == driver_id:
                distance_m = round(row["distance_m"], 1)
                asked = {"driver_id": row["driver_id"], "distance_m": distance_m, **score}
                rest = [asked, *(other for other in others if other is not ranked)]
                return {**{name: ranked[name] for name in Score._fields}, "next": rest}
    return None


def _verdict(
    trip: Trip,
    driver_id: str,
    filters: list[FilterView],
    history: list[dict[str, Any]],
    *,
    is_known: bool,
) -> dict[str, Any]:
    if trip.current_status is Status.PENDING:
        refusing = [view for view in filters if view.passes is False]
        if not refusing and not is_known:
            text = f"nothing that Postgres knows keeps an offer away; the rest is {NOT_KNOWN}"
            return {"codes": ["not_known"], "text": text}
        if not refusing:
            text = (
                "the next round of matching may choose this driver"
                if any(view.name == ROUND_OF_MATCHING for view in filters)
                else "the next wave would offer the trip to this driver"
            )
            return {"codes": ["would_be_offered"], "text": text}
        text = "no offer now: " + "; ".join(view.saw for view in refusing)
        return {"codes": [view.name for view in refusing], "text": text}
    if trip.driver_id == driver_id:
        text = f"the trip is {trip.current_status}, and it is this driver's"
        return {"codes": ["has_the_trip"], "text": text}
    past = [line for line in history if line["code"] != "taken"]
    taken = f"; driver {trip.driver_id} has it" if trip.driver_id else ""
    if not past:
        text = f"the trip is {trip.current_status}{taken}; this driver was never offered it"
        return {"codes": ["never_offered"], "text": text}
    text = f"the trip is {trip.current_status}{taken}; this driver " + past[-1]["text"]
    return {"codes": [past[-1]["code"]], "text": text}
