"""Since when the stream of a zone may lack events that were committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from dispatcher.core.authority import Authority
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import millis, moment, now_ms
from dispatcher.ledger.database import Database
from dispatcher.live.catch_up_notes import CatchUpNotes, CaughtUp
from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.event_stream import REMEMBERED_S, EventStream
from dispatcher.live.keys import Keys
from dispatcher.service.questions import Questions

log = structlog.get_logger("dispatcher.outbox")

#: How far back the last event of a zone is looked for: each time ten times as far, up to a day.
_FIRST_LOOK_MS: Final = 60_000
_LOOK_FURTHER: Final = 10
_LOOK_BACK_MS: Final = REMEMBERED_S * 1000
#: Clocks in step differ by less: what Redis has just decided may seem to lie ahead by that.
_USUAL_SKEW_MS: Final = 1_000
#: Within this, attempts are swept also where there are a thousand, and where their sweeper dies.
_SWEPT_WITHIN_MS: Final = 60_000


class UnheardEvents:
    """Asks both engines, for many zones together where many are loaded. All raise StoreUnavailable."""

    def __init__(
        self,
        stream: EventStream,
        redis_clock: ComparisonScripts,
        database: Database,
        notes: CatchUpNotes,
        *,
        lease_ms: int,
    ) -> None:
        self._stream = stream
        self._notes = notes
        self._lease_ms = lease_ms
        self._redis_clock = redis_clock
        self._database = database
        self._last_events: Questions[str, int] = Questions(self._ask_last_events)
        # Zones that are being loaded with what Postgres has decided alone.
        self._lacking: set[str] = set()
        self._alone: Questions[str, tuple[int, int | None]] = Questions(self._ask_alone)

    async def clock(self, zone: str) -> int:
        """The time (ms) by Postgres' clock."""
        at_postgres, _ = await self._alone.find(zone) or (now_ms(), None)
        return at_postgres

    async def caught_up(self, keys: Keys, *, fence: int, run_id: str) -> CaughtUp | None:
        """What this Redis was told while Postgres decided alone, under this fence; None: nothing that
        can be relied on. A time that lies ahead of the clock that gave it says nothing."""
        caught = await self._notes.read(keys, fence=fence, run_id=run_id)
        if caught is None or caught.at_ms > await self.clock(keys.zone) + _USUAL_SKEW_MS:
            return None
        return caught

    async def since(self, keys: Keys, caught: CaughtUp | None = None) -> int | None:
        """Since when (ms) the stream of a zone, which is about to be loaded, may lack events, by the
        times that they carry; None where nothing was ever committed.

        An attempt is committed within its lease, and becomes visible within one more. One that Redis
        has claimed is settled by a sweeper some time after that; of what Postgres has decided alone the
        stream has heard what it was told when it was `caught` up.
        """
        if caught is not None:
            self._lacking.add(keys.zone)
            return max(0, caught.at_ms - 2 * self._lease_ms)
        heard_ms = await self._heard_since(keys)
        return None if heard_ms is None else max(0, heard_ms - 2 * self._lease_ms - _SWEPT_WITHIN_MS)

    async def _heard_since(self, keys: Keys) -> int | None:
        """Since when it may not have heard what happened.

        That is when it got its last one. Where it has none, the last event that was committed stands for
        it, however long ago, since what is not committed is not unheard. Where Redis' clock is ahead of
        Postgres', what Postgres has decided alone bears earlier times. A time that lies ahead of the
        clock that gave it says nothing, for that clock was put right: then all is looked at that a
        consumer remembers. What Postgres has decided alone since the last load is looked at in any case.
        What a load tells is newer than what it has still to tell: where it breaks off, the next one
        begins where it did.
        """
        heard_ms = await self._stream.last_heard_ms(keys)
        at_redis, _ = await self._redis_clock.read_clock(keys)
        at_postgres, alone_ms = await self._alone.find(keys.zone) or (now_ms(), None)
        if heard_ms is None:
            heard_ms = await self._last_events.find(keys.zone)
            lies_ahead = heard_ms is not None and heard_ms > at_postgres + _USUAL_SKEW_MS
        else:
            lies_ahead = heard_ms > at_redis
            heard_ms -= max(0, at_redis - at_postgres)
        if lies_ahead:
            heard_ms = at_postgres - _LOOK_BACK_MS
        if alone_ms is not None:
            self._lacking.add(keys.zone)
            heard_ms = alone_ms if heard_ms is None else min(heard_ms, alone_ms)
        since_ms = await self._stream.keep_unheard_since(keys, heard_ms)
        return None if since_ms is None else min(since_ms, at_postgres)

    async def loaded(self, zone: str, authority: Authority) -> None:
        """The zone was loaded under this authority: nothing of before is unheard."""
        if zone in self._lacking:
            await self._database.execute("is_loaded", zone=zone, fence=authority.fence)
            self._lacking.discard(zone)

    async def _ask_alone(self, zones: Sequence[str]) -> Mapping[str, tuple[int, int | None]]:
        """The time by Postgres' clock, and since when it has decided alone about each zone (ms)."""
        rows = await self._database.rows("alone_since", zones=list(zones))
        return {row["zone"]: (millis(row["now"]) or 0, millis(row["alone_since"])) for row in rows}

    async def _ask_last_events(self, zones: Sequence[str]) -> Mapping[str, int]:
        """When the last event of each zone was committed (ms), within what a consumer can remember."""
        found: dict[str, int] = {}
        missing, now, back_ms = list(zones), now_ms(), _FIRST_LOOK_MS
        while missing and back_ms <= _LOOK_BACK_MS:
            try:
                found |= await self._last_events_since(missing, now - back_ms)
            except StoreUnavailable as error:
                if back_ms == _FIRST_LOOK_MS:
                    raise
                # Quiet zones among busy ones do not stay cold because looking back takes long.
                log.warning("older events not looked for", zones=len(missing), reason=str(error))
                break
            missing = [zone for zone in missing if zone not in found]
            back_ms *= _LOOK_FURTHER
        return found

    async def _last_events_since(self, zones: Sequence[str], since_ms: int) -> dict[str, int]:
        rows = await self._database.rows(
            "last_events_of_zones", zones=list(zones), since=moment(since_ms)
        )
        return {row["zone"]: millis(row["created_at"]) or 0 for row in rows}
