"""Positions of drivers, gathered across drivers into few script calls and few rows."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple

import orjson

from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.limits import LimitClass, Limits, LimitState
from dispatcher.core.times import moment
from dispatcher.core.zones import DEFAULT_ZONE, Zones
from dispatcher.ledger.database import Database
from dispatcher.live.keys import keys_of
from dispatcher.live.positions import DriverFix, FixCode, FixResult, PositionScripts, QueueAt
from dispatcher.service.answers import Answer, rate_limited_answer, refusal_answer
from dispatcher.service.authorities import Authorities
from dispatcher.service.customer_tracking import CustomerTracking
from dispatcher.service.driver_directory import DirectoryEntry, DriverDirectory
from dispatcher.service.ledger_rows import LedgerRows, Wanted
from dispatcher.service.queue_log import QueueLog
from dispatcher.service.rate_limits import RateLimits, log_limited
from dispatcher.service.rehydration import Rehydration

#: Fixes in one script call: some 2 ms of Redis' time.
_MAX_FIXES: Final = 200
#: A driver of an unknown zone, vehicle or epoch is looked up and tried again this often.
_MAX_TRIES: Final = 4
_ACCEPTED: Final = 202

#: (lat, lng, ms since the epoch, or None for now)
Point = tuple[float, float, int | None]


class _Group(NamedTuple):
    """What one script call takes together: one zone and vehicle type, and equally many limits."""

    zone: str
    vehicle_type: str
    limit_count: int


class _WaitingFix(NamedTuple):
    fix: DriverFix
    limits: Limits
    result: asyncio.Future[FixResult]


class _Report(NamedTuple):
    """What became of a call with points: its last result, None where the driver is unknown."""

    code: FixCode | None
    limit: LimitState | None
    at_ms: int = 0


class Positions:
    """Takes fixes. The newest of each driver wins, in Redis and, a little later, in Postgres."""

    def __init__(
        self,
        *,
        scripts: PositionScripts,
        rehydration: Rehydration,
        database: Database,
        directory: DriverDirectory,
        limits: RateLimits,
        tracking: CustomerTracking,
        zones: Zones,
        authorities: Authorities,
        rows: LedgerRows,
        queue_log: QueueLog,
        fix_age_s: int,
    ) -> None:
        self._scripts = scripts
        self._queue_log = queue_log
        self._rehydration = rehydration
        self._database = database
        self._directory = directory
        self._limits = limits
        self._tracking = tracking
        self._zones = zones
        self._authorities = authorities
        self._rows = rows
        self._fix_age_ms = fix_age_s * 1000
        self._waiting: dict[_Group, list[_WaitingFix]] = defaultdict(list)
        self._is_sending = False
        self._task: asyncio.Task[None] | None = None
        #: Drivers' newest fixes that Postgres has not seen.
        self.unsaved: dict[str, DriverFix] = {}

    async def report(self, caller: Caller, points: Sequence[Point]) -> Answer:
        """Takes a driver's points and counts the call.

        Answers 202 with how many points were taken, 409 driver_not_online, 429. Raises
        StoreUnavailable.
        """
        actor = caller.actor
        report = await self._take(actor.user_id, points, caller)
        if report.code is FixCode.RATE_LIMITED and report.limit is not None:
            log_limited(report.limit, actor)
            return rate_limited_answer(report.limit)
        if report.code is None:
            return refusal_answer(Refusal("driver_not_online"), report.limit)
        taken = len(points) if report.code is FixCode.TAKEN else 0
        body = orjson.dumps({"response_code": "location_updated", "taken": taken})
        return Answer(_ACCEPTED, body, report.limit)

    async def take(self, driver_id: str, points: Sequence[Point]) -> None:
        """Takes points that are not counted. Raises Refusal driver_not_online, StoreUnavailable."""
        if (await self._take(driver_id, points, None)).code is None:
            raise Refusal("driver_not_online")

    async def _take(self, driver_id: str, points: Sequence[Point], caller: Caller | None) -> _Report:
        fixes = [DriverFix(driver_id, *point) for point in points]
        fix = sorted(fixes, key=_measured)[-1]  # of equally new ones, the last
        report = await self._put(fix, caller)
        if report.code is FixCode.TAKEN:
            self.unsaved[driver_id] = fix._replace(at_ms=report.at_ms)
        return report

    async def _put(self, fix: DriverFix, caller: Caller | None) -> _Report:
        """Puts a fix, and looks up what proves to be missing or wrong. Counts the call of a caller."""
        driver_id, limit, is_counted = fix.driver_id, None, caller is None
        for _ in range(_MAX_TRIES):
            entry = await self._directory.find(driver_id)
            if entry is None:
                break
            limits = () if is_counted else self._limits_of(caller, entry.zone)
            if self._authorities.of(entry.zone).is_degraded:
                return await self._put_without_redis(fix, limits)
            try:
                result = await self._join_batch(fix, entry, limits)
            except StoreUnavailable:
                if not await self._authorities.has_left_redis(entry.zone):
                    raise
                continue
            limit = result.limit or limit
            if limits and result.code not in (FixCode.COLD, FixCode.RATE_LIMITED):
                self._limits.local.note(limits, result.limit)
            if result.code in (FixCode.TAKEN, FixCode.LATE, FixCode.RATE_LIMITED):
                return _Report(result.code, limit, result.at_ms)
            is_counted = is_counted or result.code is not FixCode.COLD
            if not await self._look_up(result, driver_id, entry):
                break
        if not is_counted and (limits := self._limits_of(caller, DEFAULT_ZONE)):
            # No zone that counted the call: whoever was never online is limited all the same.
            admission = await self._limits.check(limits)
            if not admission.is_admitted:
                return _Report(FixCode.RATE_LIMITED, admission.limit)
            limit = admission.limit
        return _Report(None, limit)

    async def _put_without_redis(self, fix: DriverFix, limits: Limits) -> _Report:
        """Takes a fix for Postgres alone; Redis gets it with the zone."""
        is_admitted, limit = self._limits.local.check(limits)
        if not is_admitted:
            return _Report(FixCode.RATE_LIMITED, limit)
        limit = self._limits.local.record(limits, limit)
        found = await self._rows.look(Wanted(driver_id=fix.driver_id))
        driver, now = found.driver, found.now_ms
        if driver is None or not driver.is_online:
            return _Report(None, limit)
        known = self.unsaved.get(fix.driver_id)
        at_ms = now if fix.at_ms is None else min(fix.at_ms, now)
        if known is not None and known.at_ms is not None and known.at_ms > at_ms:
            return _Report(FixCode.LATE, limit)
        return _Report(FixCode.TAKEN, limit, at_ms)

    def _limits_of(self, caller: Caller | None, zone: str) -> Limits:
        if caller is None:
            return ()
        return self._limits.of(
            LimitClass.LOCATION_UPDATE, caller.actor, caller.ip, self._zones.get(zone)
        )

    def _join_batch(
        self, fix: DriverFix, entry: DirectoryEntry, limits: Limits
    ) -> asyncio.Future[FixResult]:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[FixResult] = loop.create_future()
        group = _Group(entry.zone, entry.vehicle_type, len(limits))
        self._waiting[group].append(_WaitingFix(fix, limits, result))
        if not self._is_sending:
            self._is_sending = True
            self._task = loop.create_task(self._send())
        return result

    async def _look_up(self, result: FixResult, driver_id: str, entry: DirectoryEntry) -> bool:
        """Whether another try may end better, since something was learned after this one."""
        match result.code:
            case FixCode.COLD:
                await self._rehydration.warm(entry.zone)
            case FixCode.UNKNOWN | FixCode.OFFLINE | FixCode.OTHER_VEHICLE:
                # They may have moved by way of another server, or their zone have missed what they did.
                driver = await self._rehydration.reload_driver(keys_of(entry.zone), driver_id)
                self._directory.forget(driver_id)
                if driver is None or not driver.is_online:
                    return False
                self._directory.learn(driver_id, DirectoryEntry.of(driver))
        return True

    async def _send(self) -> None:
        # One turn of the loop gathers what arrived together; while a batch is away, the next fills.
        await asyncio.sleep(0)
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, defaultdict(list)
                await asyncio.gather(
                    *(
                        self._send_batch(group, fixes[start : start + _MAX_FIXES])
                        for group, fixes in waiting.items()
                        for start in range(0, len(fixes), _MAX_FIXES)
                    )
                )
        finally:
            self._is_sending = False

    async def _send_batch(self, group: _Group, batch: list[_WaitingFix]) -> None:
        try:
            results = await self._scripts.put_positions(
                keys_of(group.zone),
                group.vehicle_type,
                [waiting.fix for waiting in batch],
                fix_age_ms=self._fix_age_ms,
                limits=[waiting.limits for waiting in batch],
                queues=self._queues_at(group.zone, batch),
            )
        except Exception as error:
            for waiting in batch:
                if not waiting.result.done():
                    waiting.result.set_exception(type(error)(*error.args))
            return
        moves = []
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.result.done():
                waiting.result.set_result(result)
            if result.queue:
                self._queue_log.stands(waiting.fix.driver_id, result.queue, result.queued_ms)
            if result.code is FixCode.TAKEN and result.trip_id:
                moves.append((waiting.fix._replace(at_ms=result.at_ms), result.trip_id))
        if moves:
            await self._tracking.publish_moves(group.zone, moves)

    def _queues_at(self, zone_name: str, batch: list[_WaitingFix]) -> Sequence[QueueAt | None]:
        """At whose place each of the fixes is; nothing where the zone has no queues."""
        zone = self._zones.get(zone_name)
        if zone is None or not zone.queues:
            return ()
        found = (zone.queue_at(waiting.fix.lat, waiting.fix.lng) for waiting in batch)
        return [QueueAt(queue.name, queue.absence_ms) if queue else None for queue in found]

    async def save(self) -> int:
        """Writes the newest fixes to Postgres in one statement; returns how many rows changed.

        Fixes that Postgres could not take are kept for the next time, unless newer ones came.
        Raises StoreUnavailable.
        """
        if not self.unsaved:
            return 0
        unsaved, self.unsaved = self.unsaved, {}
        fixes = [unsaved[driver_id] for driver_id in sorted(unsaved)]  # one order for all: no deadlock
        try:
            return await self._database.save_positions(
                [fix.driver_id for fix in fixes],
                [fix.lat for fix in fixes],
                [fix.lng for fix in fixes],
                [moment(fix.at_ms or 0) for fix in fixes],
            )
        except StoreUnavailable:
            self.unsaved = unsaved | self.unsaved
            raise


def _measured(fix: DriverFix) -> float:
    """When a fix was measured; one without a time is measured now, after all others."""
    return inf if fix.at_ms is None else fix.at_ms
