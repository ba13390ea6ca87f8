"""Before Redis decides about a zone again, it hears most of what Postgres has decided alone.

Requests wait while a zone is loaded. What grows with the time that Redis was away, the events that its
stream has missed and the answers of keys, is told before, while Postgres goes on deciding; the load
tells what is left. Trips and drivers come with the load: they are as many as there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.ledger.database import Database
from dispatcher.live.catch_up_notes import CatchUpNotes, CaughtUp
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.state import StateScripts
from dispatcher.service.authorities import Authorities
from dispatcher.service.outbox import Outbox
from dispatcher.service.questions import Questions
from dispatcher.service.saved_answers import load_answers
from dispatcher.service.unheard_events import UnheardEvents

log = structlog.get_logger("dispatcher.rehydration")

#: Where Postgres has decided less than this, a load tells it within a twentieth of a second.
_FEW: Final = 200
#: Events that are counted, of all zones that are about to be given back.
_MOST: Final = 200_000
#: Zones that are told at once: each of many would be old before it can be given back.
_AT_ONCE: Final = 16
#: Answers whose rows have their ids, and cannot be seen yet.
_ON_THEIR_WAY: Final = 1_000
#: Each time there is less to tell. Once a look takes no longer than this, Redis may decide.
_SHORT_S: Final = 1.0
#: What was told so long ago is told on from there before the zone is given back.
_OLD_S: Final = 5.0
#: A zone is given back all the same after this long: its load tells the rest.
_MAX_S: Final = 60.0


class _Work(NamedTuple):
    """What is done about a zone: under which fence, since when, and the look that is under way."""

    fence: int
    begun_at: float
    look: asyncio.Task[float | None]


class CatchUp:
    """One server tells; the others see by what it notes in Redis that it has."""

    def __init__(
        self,
        *,
        state: StateScripts,
        notes: CatchUpNotes,
        outbox: Outbox,
        unheard: UnheardEvents,
        database: Database,
        authorities: Authorities,
    ) -> None:
        self._state = state
        self._notes = notes
        self._outbox = outbox
        self._unheard = unheard
        self._database = database
        self._authorities = authorities
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._work: dict[str, _Work] = {}
        self._amounts: Questions[str, int] = Questions(self._ask_amounts)

    def is_done(self, zone: str) -> bool:
        """Whether a zone, whose Redis can be reached again, may be given back: what can be told before
        was told within the last seconds. Where it was not, that begins."""
        fence = self._authorities.of(zone).fence
        now = time.monotonic()
        work = self._work.get(zone)
        if work is not None and work.fence != fence:  # the zone was given back since, and left again
            work.look.cancel()
            work = None
        begun_at = now if work is None else work.begun_at
        if work is not None and now - begun_at > _MAX_S:
            work.look.cancel()
            return True
        if work is not None and work.look.done():
            told_at = work.look.result()
            if told_at is not None and now - told_at < _OLD_S:
                del self._work[zone]
                return True
        if work is None or work.look.done():
            look = asyncio.create_task(self._look(keys_of(zone), fence))
            self._work[zone] = _Work(fence, begun_at, look)
        return False

    def forget_all_but(self, zones: Collection[str]) -> None:
        """The others have been given back, by whichever server."""
        for zone in [zone for zone in self._work if zone not in zones]:
            look = self._work[zone].look
            if look.done():
                del self._work[zone]
            else:
                look.cancel()  # and its turn is another zone's

    async def close(self) -> None:
        """Breaks off what is under way."""
        looks = [work.look for work in self._work.values()]
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    async def _look(self, keys: Keys, fence: int) -> float | None:
        try:
            if (await self._amounts.find(keys.zone) or 0) <= _FEW:
                return time.monotonic()
            async with self._turns:
                return await self._catch_up(keys, fence)
        except StoreUnavailable as error:
            log.warning("events not told to redis", zone=keys.zone, reason=str(error))
        except Exception:
            log.exception("events not told to redis", zone=keys.zone)
        return None

    async def _catch_up(self, keys: Keys, fence: int) -> float | None:
        """Tells until there is little left; when (monotonic) that was so. None: it is not so yet."""
        run_id = await self._state.run_id(keys, max_age_s=0)
        caught = await self._unheard.caught_up(keys, fence=fence, run_id=run_id)
        if caught is not None:
            age_s = (await self._unheard.clock(keys.zone) - caught.at_ms) / 1000
            if age_s < _OLD_S:
                return time.monotonic() - age_s
        token = secrets.token_hex(8)
        if not await self._notes.begin(keys, token):
            return None  # another server is about it
        began, told = time.monotonic(), 0
        try:
            while True:
                looked_at = time.monotonic()
                caught, count = await self._tell(keys, fence, caught)
                told += count
                if time.monotonic() - looked_at < _SHORT_S or looked_at - began > _MAX_S:
                    break
            is_noted = await self._notes.end_catching_up(
                keys, token, fence=fence, run_id=run_id, caught=caught
            )
        except BaseException:
            with contextlib.suppress(StoreUnavailable):
                await self._notes.end_catching_up(keys, token)
            raise
        seconds = round(time.monotonic() - began, 3)
        log.info("events told to redis", zone=keys.zone, events=told, seconds=seconds)
        # Where the lock was lost, what was told may be lost as well.
        return looked_at if is_noted else None

    async def _tell(self, keys: Keys, fence: int, before: CaughtUp | None) -> tuple[CaughtUp, int]:
        """Tells what is visible by now and was not told; up to where, and how many events that was."""

        async def go_on(keys: Keys) -> None:
            if self._authorities.of(keys.zone).fence != fence:
                raise StoreUnavailable(f"another engine decides about zone {keys.zone}")
            await self._notes.go_on(keys)

        at_ms = await self._unheard.clock(keys.zone)
        answer_id = max(0, int(await self._database.row("last_answer")) - _ON_THEIR_WAY)
        since_ms = await self._unheard.since(keys, before)
        _, horizon_ms = await load_answers(
            self._state, self._database, keys, go_on=go_on,
            after=(before.answer_id, since_ms or 0) if before else None,
        )  # fmt: skip
        told = await self._outbox.tell_unheard(keys, since_ms, go_on=go_on)
        await go_on(keys)
        if before is not None:
            horizon_ms = max(horizon_ms, before.horizon_ms)
        return CaughtUp(at_ms, answer_id, horizon_ms), told

    async def _ask_amounts(self, zones: Sequence[str]) -> Mapping[str, int]:
        """How many events Postgres has decided alone of each zone, or more: the zones that were left
        first count for all. A load that finds nothing told tells all."""
        try:
            rows = await self._database.rows("decided_alone", zones=list(zones), most=_MOST)
        except StoreUnavailable as error:
            log.warning("events not counted", zones=len(zones), reason=str(error))
            return {}
        return {row["zone"]: row["events"] for row in rows}
