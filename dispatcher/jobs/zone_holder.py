"""Takes this server's share of the zones, and does their rounds.

Each server gives a sign of life once a second, learns who else is alive, and works out from that alone
which zones are its own. A zone that it gains it takes in the zone's own Redis, by a fence: whoever held
it before is refused from then on, however late it notices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.jobs.loop import FunctionJob, Job, JobLoop
from dispatcher.live.keys import SERVER_KEYS, keys_of
from dispatcher.live.pubsub import Listener, Subscriber
from dispatcher.live.servers import ServerList, ServerScripts
from dispatcher.service.offers import ZoneLost
from dispatcher.service.zone_shares import digest_of, zone_shares

log = structlog.get_logger("dispatcher.zones")

_BEAT_S: Final = 1.0
#: A server that is silent this long has its zones taken by others.
_LIFE_S: Final = 4.0
#: A list that is younger than this does not know every server yet: whoever holds zones keeps them.
_LIST_GROWS_S: Final = 2.5
#: A list that does not answer a server that stops is left to notice it.
_LEAVE_S: Final = 0.5
#: Zones taken in one go.
_MAX_TAKES: Final = 200


@dataclass(slots=True, eq=False)
class HeldZone:
    """A zone that is held, as its jobs see it."""

    zone: str
    fence: int
    lost: Callable[[HeldZone], None]
    hears: Callable[[], bool]
    loops: Sequence[JobLoop] = ()

    def fence_text(self) -> str:
        """What the scripts are given."""
        return str(self.fence)

    def wake(self) -> None:
        """A wave is due."""
        self.loops[0].wake()

    def wake_all(self) -> None:
        """Everything is to be looked at."""
        for loop in self.loops:
            loop.wake()


class ZoneHolder:
    """The zones of one server process. Starts and stops like a loop of one job."""

    def __init__(
        self,
        *,
        node: str,
        zones: Sequence[str],
        scripts: ServerScripts,
        subscriber: Subscriber,
        jobs: Callable[[HeldZone], Sequence[JobLoop]],
        waves: Callable[[str], str],
    ) -> None:
        self._node = node
        self._zones = list(zones)
        self._digest = digest_of(zones)
        self._known_zones: dict[str, list[str]] = {self._digest: self._zones}
        self._scripts = scripts
        self._subscriber = subscriber
        self._jobs = jobs
        self._waves = waves
        self._loop = JobLoop(FunctionJob("zones", _BEAT_S, self.beat))
        self._number = 0
        self._above = 0
        self._mine: set[str] = set()
        self._held: dict[str, HeldZone] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._retaking: set[str] = set()
        self._canary = 0

    def __len__(self) -> int:
        return len(self._held)

    def held(self) -> list[str]:
        """The zones that this server holds."""
        return list(self._held)

    def start(self) -> None:
        """Begins at once."""
        self._subscriber.subscribe(
            SERVER_KEYS.changed, Listener(lambda _: self._loop.wake(), self._loop.wake)
        )
        self._loop.start()
        self._loop.wake()

    async def stop(self) -> None:
        """Leaves the zones to the others, and lets what has begun come to its end."""
        await self._loop.stop()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._scripts.leave_servers(self._node)
        except (StoreUnavailable, TimeoutError) as error:
            log.info("zones are left to their time", reason=str(error) or "no answer in time")
        self._subscriber.unsubscribe(SERVER_KEYS.changed)
        for held in list(self._held.values()):
            self._drop(held)
        await asyncio.gather(*self._tasks)

    def wake(self) -> None:
        """The list of servers may have changed."""
        self._loop.wake()

    async def beat(self) -> None:
        """Tells the others of this server, and takes or leaves zones. Raises StoreUnavailable."""
        try:
            await self._learn_share()
        finally:
            # Also where the list cannot be had: the share is what it was until more is known.
            await self._take_share()

    async def _learn_share(self) -> None:
        servers = await self._scripts.beat_server(
            self._node, self._zones, self._digest,
            life_ms=int(_LIFE_S * 1000), known_number=self._number, above=self._above,
        )  # fmt: skip
        self._above = 0
        if servers.serves is None or self._is_too_young(servers):
            return
        shares = await self._shares(servers.serves)
        if shares is not None:
            self._number = servers.number
            self._mine = {zone for zone, node in shares.items() if node == self._node}

    async def _take_share(self) -> None:
        for held in [held for zone, held in self._held.items() if zone not in self._mine]:
            self._drop(held)
        missing = [zone for zone in self._zones if zone in self._mine and zone not in self._held]
        for start in range(0, len(missing), _MAX_TAKES):
            await asyncio.gather(*(self._take(z) for z in missing[start : start + _MAX_TAKES]))
        await self._check_canary()

    def _is_too_young(self, servers: ServerList) -> bool:
        """Whether the list has begun anew, so that other servers may be missing in it still."""
        return bool(self._mine) and servers.age_ms < _LIST_GROWS_S * 1000

    async def _shares(self, serves: Mapping[str, str]) -> dict[str, str] | None:
        """The server of each zone; None where it is not known yet which zones a server could take."""
        for digest in set(serves.values()) - self._known_zones.keys():
            zones = await self._scripts.zones_of(digest)
            if zones is None:
                return None
            self._known_zones[digest] = zones
        able = {node: self._known_zones[digest] for node, digest in serves.items()}
        return await asyncio.to_thread(zone_shares, able)

    async def _take(self, zone: str) -> None:
        """Takes a zone that is this server's share; one that another server has taken by a later list is
        left to it."""
        try:
            fence = await self._take_in_redis(zone)
        except StoreUnavailable as error:
            log.warning("zone not taken", zone=zone, reason=str(error))
            return
        if fence != self._number:
            self._above = max(self._above, fence)
            return
        held = self._held[zone] = HeldZone(
            zone, fence, self._lost, lambda: self._subscriber.is_up(keys_of(zone).wake)
        )
        held.loops = self._jobs(held)
        for loop in held.loops:
            loop.start()
        # What became due before the subscription stands is looked for once it does.
        listener = Listener(lambda _: held.wake(), held.wake, held.wake)
        self._subscriber.subscribe(keys_of(zone).wake, listener)
        held.wake_all()

    async def _take_in_redis(self, zone: str) -> int:
        return await self._scripts.take_zone(keys_of(zone), self._node, self._number, self._waves(zone))

    def _drop(self, held: HeldZone) -> None:
        """Does no more rounds of a zone."""
        if self._held.get(held.zone) is held:
            del self._held[held.zone]
            self._subscriber.unsubscribe(keys_of(held.zone).wake)
            self._spawn(_stop(held.loops))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lost(self, held: HeldZone) -> None:
        """The zone's Redis says that it is not held by this fence, or has forgotten by whom it is."""
        if held.zone not in self._retaking:
            self._retaking.add(held.zone)
            self._spawn(self._retake(held))

    async def _retake(self, held: HeldZone) -> None:
        try:
            if held.zone in self._mine:
                fence = await self._take_in_redis(held.zone)
                if fence == self._number:
                    held.fence = fence
                    held.wake_all()
                    return
                self._above = max(self._above, fence)
            self._drop(held)
            self._loop.wake()
        except StoreUnavailable:
            pass  # its next look asks again
        finally:
            self._retaking.discard(held.zone)

    async def _check_canary(self) -> None:
        """Looks at one zone of each node: where it has forgotten who holds it, the node was emptied, and
        all its zones are looked at now."""
        by_node: dict[object, list[HeldZone]] = {}
        for held in self._held.values():
            by_node.setdefault(self._scripts.node_of(keys_of(held.zone)), []).append(held)
        self._canary += 1
        await asyncio.gather(*(self._check_node(helds) for helds in by_node.values()))

    async def _check_node(self, helds: Sequence[HeldZone]) -> None:
        held = helds[self._canary % len(helds)]
        try:
            fence = await self._scripts.fence_of(keys_of(held.zone))
        except StoreUnavailable:
            return  # its jobs find out
        if fence != held.fence_text():
            for each in helds:
                each.wake_all()


async def _stop(loops: Sequence[JobLoop]) -> None:
    await asyncio.gather(*(loop.stop() for loop in loops))


class HeldZoneJob:
    """A job of a held zone: it ends once another server does the rounds."""

    def __init__(self, job: Job, held: HeldZone) -> None:
        self.name = job.name
        self.interval_s = job.interval_s
        self._job = job
        self._held = held

    async def run(self) -> float | None:
        try:
            return await self._job.run()
        except ZoneLost:
            self._held.lost(self._held)
            return None
