"""Rehydration: the live state of a zone is loaded from Postgres where it is cold, and reloaded where
it proved stale."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from typing import Any, Final

import structlog

from dispatcher.core.actors import Role, address_of
from dispatcher.core.authority import Authority
from dispatcher.core.drivers import Driver
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey, StoredAnswer
from dispatcher.core.times import millis, now_ms
from dispatcher.core.trips import Status, Trip
from dispatcher.ledger.database import (
    Database,
    driver_from_row,
    trip_from_row,
)
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.presence import PresenceScripts
from dispatcher.live.state import Epoch, Fix, StateScripts
from dispatcher.observe.series import REPAIRED
from dispatcher.service.authorities import Authorities
from dispatcher.service.limit_seeds import LimitSeeds
from dispatcher.service.outbox import Outbox
from dispatcher.service.questions import Questions
from dispatcher.service.queue_log import QueueLog
from dispatcher.service.saved_answers import load_answers
from dispatcher.service.unheard_events import UnheardEvents
from dispatcher.service.zone_warming import ZoneWarming

log = structlog.get_logger("dispatcher.rehydration")

_PAGE_ROWS: Final = 1_000


class Rehydration:
    """Brings Redis up to what Postgres knows. All raise StoreUnavailable."""

    def __init__(
        self,
        state: StateScripts,
        database: Database,
        outbox: Outbox,
        unheard: UnheardEvents,
        authorities: Authorities,
        limit_seeds: LimitSeeds,
        queue_log: QueueLog,
        *,
        presence: PresenceScripts,
        presence_ttl_s: int,
        lease_ms: int,
    ) -> None:
        self._state, self._database = state, database
        self._outbox, self._unheard = outbox, unheard
        self._authorities, self._limit_seeds = authorities, limit_seeds
        self._queue_log, self._lease_ms = queue_log, lease_ms
        self._presence, self._presence_ms = presence, presence_ttl_s * 1000
        self._warming = ZoneWarming(state, authorities, limit_seeds, self._load)
        self._contents: Questions[str, Set[str]] = Questions(self._ask_contents)

    async def warm(self, zone: str) -> None:
        """Loads a cold zone, or waits for the server that is loading it: a request waits for it.

        Cold is also one loaded into another Redis than answers: a successor may lack the last writes.
        """
        await self._warming.warm(zone)

    async def begin(self, zone: str) -> None:
        """Begins the load of a cold zone without waiting for it, and has the servers add what they have
        admitted to the logs of limits that it keeps: this one now, the others as soon as they hear."""
        await self._warming.begin(zone)

    async def warm_all(self, zones: Sequence[str]) -> None:
        """Loads zones at a start. One whose node of a cluster is away is loaded once it is back.

        Raises StoreUnavailable where that is so for all of them.
        """
        await self._warming.warm_all(zones)

    async def rebuild(self, zone: str) -> None:
        """Makes a zone cold and loads it anew, while servers run: their claims wait for it."""
        await self._warming.rebuild(zone)

    async def check_epoch(self, zone: str) -> bool:
        """Whether the zone is loaded into the Redis that answers.

        Where it is not, it is being loaded from now on, without waiting: other zones go on. One that
        does without its Redis is left alone.
        """
        return await self._warming.check_epoch(zone)

    async def close(self) -> None:
        """Waits until no zone is being loaded by this server."""
        await self._warming.close()

    async def _load(self, keys: Keys, token: str, run_id: str, authority: Authority) -> None:
        """Makes the live state equal to Postgres, in both directions.

        What it holds is dropped first: what is written meanwhile by settles is newer than the rows
        that are read afterwards, or equal to them, and stays.
        """
        started = time.monotonic()
        log.info("zone is loaded", zone=keys.zone)
        self._limit_seeds.announce(keys.zone)
        # What was told already while Postgres decided alone, which was so until this authority began.
        caught = await self._unheard.caught_up(keys, fence=authority.fence - 1, run_id=run_id)
        since_ms = await self._unheard.since(keys, caught)
        fixes = await self._state.drop_zone(keys)
        has = await self._contents.find(keys.zone) or ()
        # Drivers first: an accept that finds its trip must find its driver.
        drivers = await self._load_drivers(keys, fixes) if "drivers" in has else 0
        trips = await self._load_trips(keys) if "trips" in has else 0
        answers, horizon_ms = 0, 0
        if "answers" in has:
            answers, horizon_ms = await load_answers(
                self._state, self._database, keys, go_on=self._state.go_on_loading,
                after=(caught.answer_id, since_ms or 0) if caught else None,
            )  # fmt: skip
        loaded_ms = now_ms()
        missed = await self._outbox.settle_unheard(keys, since_ms)
        if caught:
            horizon_ms = max(horizon_ms, caught.horizon_ms)
        if trips or answers or caught:
            # A commit that was under way while we read has its row within its lease.
            horizon_ms = max(horizon_ms, loaded_ms + self._lease_ms)
        await self._limit_seeds.seed(keys.zone)
        if await self._authorities.read(keys.zone) != authority:
            # Postgres has decided alone meanwhile, some of it after it was read.
            raise StoreUnavailable(f"postgres has decided about zone {keys.zone}")
        if await self._state.end_loading(keys, token, Epoch(loaded_ms, horizon_ms, run_id)):
            with contextlib.suppress(StoreUnavailable):  # then the next load looks further back
                await self._unheard.loaded(keys.zone, authority)
            REPAIRED.add("zone_loaded")
            seconds = round(time.monotonic() - started, 3)
            log.info("zone loaded", zone=keys.zone, trips=trips, drivers=drivers, answers=answers,
                     missed_events=missed, seconds=seconds)  # fmt: skip

    async def _ask_contents(self, zones: Sequence[str]) -> Mapping[str, Set[str]]:
        """What zones have that is to be loaded, of drivers, trips and answers."""
        contents: dict[str, set[str]] = defaultdict(set)
        for row in await self._database.rows("contents_of_zones", zones=list(zones)):
            contents[row["zone"]].add(row["kind"])
        return contents

    async def _load_drivers(self, keys: Keys, fixes: Mapping[str, Fix]) -> int:
        count = 0
        async for page in self._pages("online_drivers_of_zone", "user_id", keys):
            rows = (self._load_row(keys, row, fixes.get(row["user_id"])) for row in page)
            await asyncio.gather(*rows)
            # They are present until it is known better: their servers may not tell of them for a while.
            addresses = [address_of(Role.DRIVER, row["user_id"]) for row in page]
            await self._presence.expect_present(keys, addresses, life_ms=self._presence_ms)
            count += len(page)
        return count

    async def _load_row(self, keys: Keys, row: Any, heard: Fix | None) -> None:
        saved = Fix.of(row["lat"], row["lng"], millis(row["location_updated_at"]))
        fixes = [fix for fix in (saved, heard) if fix is not None]
        fix = max(fixes, key=lambda fix: fix.at_ms, default=None)
        place = self._queue_log.place(keys.zone, row)
        await self._state.load_driver(keys, driver_from_row(row), fix=fix, place=place)

    async def _load_trips(self, keys: Keys) -> int:
        count = 0
        async for page in self._pages("live_trips_of_zone", "id", keys):
            await self._put_trips(keys, [trip_from_row(row) for row in page])
            count += len(page)
        # Their trips bring only the bond along.
        async for page in self._pages("offline_holders_of_zone", "user_id", keys):
            rows = (self._state.load_driver(keys, driver_from_row(row)) for row in page)
            await asyncio.gather(*rows)
        return count

    async def _put_trips(
        self,
        keys: Keys,
        trips: Sequence[Trip],
        *,
        former: str | None = None,
        offered: Sequence[str] = (),
    ) -> None:
        """Puts trips into the live state, those that wait with what was offered so far."""
        waiting = [trip.id for trip in trips if trip.current_status is Status.PENDING]
        rows = await self._database.rows("offers_so_far", ids=waiting) if waiting else []
        so_far = {row["id"]: (row["barred"], row["last_wave"]) for row in rows}
        await asyncio.gather(
            *(
                self._state.load_trip(
                    keys, trip, former_driver=former, offered=offered, barred=barred, last_wave=wave
                )
                for trip in trips
                for barred, wave in (so_far.get(trip.id, ((), 0)),)
            )
        )

    async def _pages(self, query: str, column: str, keys: Keys) -> AsyncIterator[list[Any]]:
        after = ""
        while page := await self._database.rows(
            query, zone=keys.zone, after=after, page_size=_PAGE_ROWS
        ):
            yield page
            await self._state.go_on_loading(keys)
            after = page[-1][column]

    async def reload(self, keys: Keys, trip_id: str, driver_id: str, *, attempt: str = "") -> None:
        """Brings trip and driver, as far as they are named, up to what Postgres knows.

        `attempt` is the token of one whose lease is over: what it committed is settled.
        """
        if trip_id:
            await self.reload_trip(keys, trip_id, attempt=attempt)
        if driver_id:
            await self.reload_driver(keys, driver_id)

    async def reload_trip(
        self, keys: Keys, trip_id: str, *, former_driver: str | None = None, attempt: str = ""
    ) -> Trip | None:
        """Brings a trip, with its bond to its driver, up to what Postgres knows: what the live state
        has missed is settled, and the rest is loaded. `former_driver` may believe to have the trip."""
        trip = await self._database.trip(trip_id)
        if trip is not None:
            former = former_driver or await self._state.driver_of(keys, trip_id)
            await self._outbox.settle_missed(keys, trip, attempt=attempt)
            offered = await self._state.offered_to(keys, trip_id)
            await self._put_trips(keys, [trip], former=former, offered=offered)
        return trip

    async def reload_driver(
        self, keys: Keys, driver_id: str, *, fix: Fix | None = None
    ) -> Driver | None:
        """Reads a driver, and their active trip, from Postgres into the live state of `keys`' zone.

        One who works in another zone is offline in this one, and is told to that one as well, which may
        not have heard of their coming. `fix` is their last one where the live state has none. None for
        one who was never online.
        """
        driver = await self._database.driver(driver_id)
        if driver is None:
            return None
        known = await self._state.read_driver(keys, driver_id)
        if known is not None and known.trip_id and known.trip_id != driver.trip_id:
            await self.reload_trip(keys, known.trip_id, former_driver=driver_id)
        vehicle = known.vehicle_type if known else ""
        if driver.zone != keys.zone:
            await self._state.load_driver(keys, driver, former_vehicle=vehicle)
            keys = keys_of(driver.zone)
            known = await self._state.read_driver(keys, driver_id)
            vehicle = known.vehicle_type if known else ""
        if driver.trip_id is not None:
            await self.reload_trip(keys, driver.trip_id)
        place = None if known else await self._queue_log.saved_place(keys.zone, driver_id)
        await self._state.load_driver(keys, driver, fix=fix, place=place, former_vehicle=vehicle)
        return driver

    async def reload_answer(
        self, keys: Keys, key: IdempotencyKey, *, trip_id: str = "", driver_id: str = ""
    ) -> StoredAnswer | None:
        """The stored answer of a key, from Postgres, kept in Redis from now on.

        Trip and driver are brought along first: the next call meets what this answer says.
        """
        answer = await self._database.stored_answer(key)
        if answer is not None:
            await self.reload(keys, trip_id, driver_id)
            await self._state.keep_answer(keys, key, answer)
        return answer
