"""Who decides about each zone, and the way from Redis to Postgres alone and back.

The truth is a row in Postgres (`zone_authorities`). What is remembered here is a copy with its fence;
a commit whose fence is old is refused. So it does not matter for what is written who learns late.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import structlog

from dispatcher.core.authority import BY_REDIS, Authority, Engine
from dispatcher.core.errors import StoreUnavailable
from dispatcher.ledger.database import Database
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.state import StateScripts
from dispatcher.service.questions import Questions

log = structlog.get_logger("dispatcher.authorities")

_T = TypeVar("_T")

#: Redis decides again once every server has reached it for this long.
HELD_S: Final = 3.0
#: How long zones are given back before it is heard again what others have changed. A thousand of them
#: take some twenty seconds.
_GIVE_BACK_S: Final = 0.25
#: A change may become visible this long after the moment that it carries.
_OVERLAP_S: Final = 10.0
#: A refusal waits so long for Postgres at most.
_LOOK_S: Final = 1.0


class Authorities:
    """What this server knows of it. What is awaited raises StoreUnavailable where Postgres is away."""

    def __init__(
        self,
        zones: Sequence[str],
        *,
        database: Database,
        pipeline: Pipeline,
        state: StateScripts,
        node: str,
        held_s: float = HELD_S,
    ) -> None:
        self._zones = zones
        self._database = database
        self._pipeline = pipeline
        self._state = state
        self._node = node
        #: HELD_S, or less in tests.
        self.held_s = held_s
        self._known: dict[str, Authority] = {}
        self._held: set[str] = set()
        # When it was last heard what has changed, by both clocks.
        self._heard_at: tuple[float, float] | None = None
        self._taking = asyncio.Lock()
        self._looks: Questions[str, Authority] = Questions(self._look)
        #: Server processes there are, this one included, as of the last look.
        self.servers = 1

    def of(self, zone: str) -> Authority:
        """Who decides, as far as this server has heard."""
        return self._known.get(zone, BY_REDIS)

    def degraded(self) -> list[str]:
        """The zones that Postgres decides about alone."""
        return [zone for zone, authority in self._known.items() if authority.is_degraded]

    async def load(self) -> None:
        """Makes the zones' rows where there are none, and reads them all."""
        await self._database.execute("add_authorities", zones=list(self._zones))
        await self.refresh()

    async def refresh(self) -> None:
        """Hears of what other servers have changed.

        It is asked also while all is well here, since this server may be the only one that reaches a
        zone's Redis. Its commits would be refused by their fence, but until one is, losers would be told
        what Redis remembers, and sockets nothing.
        """
        at = time.monotonic(), time.time()
        rows = await self._database.rows(
            "authorities_since", back_s=self._unheard_s(at), known=self.degraded()
        )
        self._heard_at = at
        self._learn(rows)
        self._held = {row["zone"] for row in rows if row["is_held"]}

    def _unheard_s(self, at: tuple[float, float]) -> float | None:
        """How far back to ask; None: all of it.

        Of both clocks, one stands still while the machine sleeps, and the other one may be set.
        """
        if self._heard_at is None:
            return None
        return _OVERLAP_S + max(now - then for now, then in zip(at, self._heard_at, strict=True))

    def _learn(self, rows: Iterable[Any]) -> None:
        for row in rows:
            zone, authority = row["zone"], Authority(Engine(row["engine"]), row["fence"])
            known = self._known.get(zone)
            if known is None or known.fence < authority.fence:
                self._known[zone] = authority
                if known is not None or authority.is_degraded:
                    log.warning(
                        "another engine decides", zone=zone, engine=authority.engine,
                        fence=authority.fence,
                    )  # fmt: skip

    async def has_left_redis(self, zone: str) -> bool:
        """After a call to the zone's Redis has failed: whether Postgres decides from now on.

        False where Redis is there after all.
        """
        if not self.of(zone).is_degraded and await self._pipeline.is_away(keys_of(zone).epoch):
            async with self._taking:
                if not self.of(zone).is_degraded:
                    await self._take_from_redis(self._away())
        return self.of(zone).is_degraded

    async def ask_redis(self, zone: str, ask: Callable[[], Awaitable[_T]]) -> _T | None:
        """What the zone's Redis says to a question; None where Postgres decides alone."""
        if self.of(zone).is_degraded:
            return None
        try:
            return await ask()
        except StoreUnavailable:
            if not await self.has_left_redis(zone):
                raise
            return None

    def _away(self) -> list[str]:
        return [zone for zone in self._zones if self._pipeline.is_left_alone(keys_of(zone).epoch)]

    async def _take_from_redis(self, zones: list[str]) -> None:
        rows = await self._database.rows(
            "take_from_redis", zones=zones, server=self._node, held_s=self.held_s
        )
        self._learn(rows)
        if len(rows) < len(zones):  # another server was faster
            await self.refresh()

    async def tend(self, is_ready: Callable[[str], bool] = lambda zone: True) -> list[str]:
        """Takes the zones of a Redis that is away, and gives back those of one that is there again and
        that are ready: some at a time, where there are many.

        Returns the zones that were given back: they are cold.
        """
        await self.refresh()
        if away := self._away():
            if any(not self.of(zone).is_degraded for zone in away):
                await self._take_from_redis(away)
            await self._database.execute("hold_authorities", zones=away, held_s=self.held_s)
        degraded = self.degraded()
        if degraded:
            self.servers = max(1, int(await self._database.row("count_servers")))
        # In any order: one that cannot be given back does not keep the others, and servers seldom try
        # the same one.
        free = list(set(degraded).intersection(self._zones).difference(self._held, away))
        random.shuffle(free)
        given = []
        until = time.monotonic() + _GIVE_BACK_S
        for zone in free:
            if is_ready(zone) and await self._give_back(zone):
                given.append(zone)
            if time.monotonic() >= until:
                break
        return given

    async def _give_back(self, zone: str) -> bool:
        # What Redis holds is older than what Postgres has decided since. It is made cold first, so that
        # whoever is told that Redis decides finds a zone that has to be loaded.
        try:
            await self._state.mark_cold(keys_of(zone), "")
        except StoreUnavailable:
            return False
        rows = await self._database.rows(
            "give_to_redis", zone=zone, fence=self.of(zone).fence, server=self._node
        )
        self._learn(rows)
        return bool(rows)

    async def read(self, zone: str) -> Authority:
        """Who decides, as Postgres has it now; those who ask at one moment ask together."""
        return await self._looks.find(zone) or BY_REDIS

    async def _look(self, zones: Sequence[str]) -> Mapping[str, Authority]:
        rows = await self._database.rows("authorities_of", zones=list(zones))
        self._learn(rows)
        return {row["zone"]: Authority(Engine(row["engine"]), row["fence"]) for row in rows}

    async def still_has_redis(self, zone: str, authority: Authority) -> bool:
        """Whether Redis still decides as it did under this authority, after it has said something of a
        trip or a driver: this server may be the last one that reaches it, and the others have gone on
        without. Raises StoreUnavailable where Postgres does not say in time."""
        if authority.is_degraded:
            return False
        try:
            async with asyncio.timeout(_LOOK_S):
                return await self.read(zone) == authority
        except TimeoutError as error:
            raise StoreUnavailable("postgres does not say who decides") from error
