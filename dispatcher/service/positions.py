"""Positions of drivers, gathered across drivers into few script calls and few rows."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import structlog

from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.limits import Limit, LimitState
from dispatcher.core.times import moment
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.ledger.database import Database
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.pubsub import publish
from dispatcher.live.scripts import Placed, Scripts
from dispatcher.service.answers import RateLimited
from dispatcher.service.driver_directory import Homes
from dispatcher.service.rehydration import Picture

log = structlog.get_logger("dispatcher.positions")

#: Fixes in one script call: some 2 ms of Redis' time.
_MOST: Final = 200
#: A driver of an unknown zone, vehicle or epoch is looked up and tried again this often.
_TRIES: Final = 4
_CUSTOMERS: Final = 100_000

_Fix = tuple[str, float, float, int]
#: Zone, vehicle type, and how many limits apply: what one script call takes together.
_Group = tuple[str, str, int]
_Waiting = tuple[_Fix, Sequence[Limit], asyncio.Future[Placed]]


class Positions:
    """Takes fixes. The newest of each driver wins, in Redis and, a little later, in Postgres."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        scripts: Scripts,
        picture: Picture,
        database: Database,
        homes: Homes,
        fix_age_s: int,
    ) -> None:
        self._pipeline = pipeline
        self._scripts = scripts
        self._picture = picture
        self._database = database
        self._fix_age_ms = fix_age_s * 1000
        self._homes = homes
        self._waiting: dict[_Group, list[_Waiting]] = defaultdict(list)
        #: Customers of the trips that drivers are on.
        self._customers: dict[str, str] = {}
        self._sending = False
        self._task: asyncio.Task[None] | None = None
        #: Drivers' newest fixes that Postgres has not seen.
        self.unsaved: dict[str, tuple[float, float, int]] = {}

    async def take(
        self,
        driver_id: str,
        points: Sequence[tuple[float, float, int | None]],
        limits: Sequence[Limit] = (),
    ) -> tuple[int, LimitState | None]:
        """Takes a driver's points: how many were new, and the limit to report.

        Raises Refusal driver_not_online, RateLimited.
        """
        now_ms = time.time_ns() // 1_000_000
        fixes = sorted(
            ((lat, lng, now_ms if at is None else at) for lat, lng, at in points),
            key=lambda fix: fix[2],
        )
        lat, lng, at = fixes[-1]
        word, limit = await self._put((driver_id, lat, lng, at), limits)
        if word != "taken":
            return 0, limit
        self.unsaved[driver_id] = (lat, lng, min(at, now_ms))
        return len(fixes), limit

    async def _put(self, fix: _Fix, limits: Sequence[Limit]) -> tuple[str, LimitState | None]:
        driver_id, limit = fix[0], None
        for _ in range(_TRIES):
            home = await self._homes.of(driver_id)
            if home is None:
                break
            word, detail, state = await self._place(fix, home, limits)
            limit = state or limit
            if word in ("taken", "late"):
                return word, limit
            if word == "rate_limited" and limit is not None:
                raise RateLimited(limit)
            if word != "cold":
                limits = ()  # this call was counted
            if not await self._has_learned(word, detail, driver_id, home):
                break
        if limits:
            # No zone that counted the call: whoever was never online is limited all the same.
            verdict = await self._scripts.check_limit(keys_of(DEFAULT_ZONE), limits)
            limit = verdict.limit
            if verdict.code == "rate_limited" and limit is not None:
                raise RateLimited(limit)
        refusal = Refusal("driver_not_online")
        refusal.limit = limit
        raise refusal

    def _place(
        self, fix: _Fix, home: tuple[str, str], limits: Sequence[Limit]
    ) -> asyncio.Future[Placed]:
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Placed] = loop.create_future()
        self._waiting[*home, len(limits)].append((fix, limits, reply))
        if not self._sending:
            self._sending = True
            self._task = loop.create_task(self._send())
        return reply

    async def _has_learned(self, word: str, detail: str, driver_id: str, home: tuple[str, str]) -> bool:
        """Whether another try may end better, since something was learned after this one."""
        match word:
            case "cold":
                await self._picture.warm(home[0])
            case "unknown":
                return await self._picture.load_driver(keys_of(home[0]), driver_id)
            case "other_vehicle":
                self._homes.learn(driver_id, home[0], detail)
            case "offline":
                # They may have moved to another zone by way of another server.
                self._homes.forget(driver_id)
                return await self._homes.of(driver_id) != home
        return True

    async def _send(self) -> None:
        # One turn of the loop gathers what arrived together; while a batch is away, the next fills.
        await asyncio.sleep(0)
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, defaultdict(list)
                await asyncio.gather(
                    *(
                        self._send_group(group, batch[start : start + _MOST])
                        for group, batch in waiting.items()
                        for start in range(0, len(batch), _MOST)
                    )
                )
        finally:
            self._sending = False

    async def _send_group(self, group: _Group, batch: list[_Waiting]) -> None:
        try:
            code, _, results = await self._scripts.put_positions(
                keys_of(group[0]),
                group[1],
                [fix for fix, _, _ in batch],
                fix_age_ms=self._fix_age_ms,
                limits=[limits for _, limits, _ in batch],
            )
        except Exception as error:
            for _, _, reply in batch:
                if not reply.done():
                    reply.set_exception(type(error)(*error.args))
            return
        if code == "cold":
            results = [Placed("cold")] * len(batch)
        for (_, _, reply), placed in zip(batch, results, strict=True):
            if not reply.done():
                reply.set_result(placed)
        moves = [
            (waiting[0], placed.detail)
            for waiting, placed in zip(batch, results, strict=True)
            if placed.word == "taken" and placed.detail
        ]
        if moves:
            await self._tell_customers(group[0], moves)

    async def _tell_customers(self, zone: str, moves: list[tuple[_Fix, str]]) -> None:
        """The customer of an active trip sees the driver move."""
        unknown = list({trip for _, trip in moves if trip not in self._customers})
        try:
            found = await asyncio.gather(*(self._scripts.customer_of(keys_of(zone), t) for t in unknown))
            if len(self._customers) > _CUSTOMERS:
                self._customers.clear()
            self._customers |= {t: c for t, c in zip(unknown, found, strict=True) if c}
            messages = [
                [
                    [f"customer:{self._customers[trip_id]}"],
                    {
                        "type": "driver_location", "trip_request_id": trip_id,
                        "driver_id": driver_id, "lat": lat, "lng": lng, "recorded_at_ms": at,
                    },
                ]
                for (driver_id, lat, lng, at), trip_id in moves
                if trip_id in self._customers
            ]  # fmt: skip
            if messages:
                await publish(self._pipeline, zone, messages)
        except StoreUnavailable:
            pass  # the next position comes soon

    async def last(self, zone: str, driver_id: str) -> tuple[float, float] | None:
        """The last fix of a driver who is online, as (lat, lng)."""
        online, lat, lng = await self._pipeline.command(
            "HMGET", keys_of(zone).driver(driver_id), "is_online", "lat", "lng"
        )
        return (float(lat), float(lng)) if online == "1" and lat else None

    async def save(self) -> int:
        """Writes the newest fixes to Postgres in one statement; returns how many rows changed.

        Fixes that Postgres could not take are kept for the next time, unless newer ones came.
        """
        if not self.unsaved:
            return 0
        fixes, self.unsaved = self.unsaved, {}
        ids = sorted(fixes)  # one order for all servers: no deadlock
        try:
            return await self._database.save_positions(
                ids,
                [fixes[i][0] for i in ids],
                [fixes[i][1] for i in ids],
                [moment(fixes[i][2]) for i in ids],
            )
        except StoreUnavailable:
            self.unsaved = fixes | self.unsaved
            raise
