"""Whatever stands at any key of a zone: a call may be refused, and then the zone is as it was.

No job crashes, and no trip or driver stays stuck. CORRUPT_EXAMPLES=500 in the environment looks longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.background import (
    absent_drivers_job,
    drift_watch_job,
    presence_flush_job,
    reconcile_job,
    zone_holder,
)
from dispatcher.core.actors import Actor
from dispatcher.core.errors import OutcomeUnknown, Refusal, StoreUnavailable
from dispatcher.core.zones import Zones
from dispatcher.jobs.waves import Waves
from dispatcher.live.keys import keys_of, names_of_zone
from dispatcher.live.shapes import SHAPES, parse_name
from dispatcher.live.zone_view import ZoneViewScripts
from dispatcher.operations.fsck import fsck
from dispatcher.operations.workbench import Workbench
from dispatcher.service.answers import Answer
from tests.harness.services import PLACE, City, code_of, driver, open_city, rider

KEYS = keys_of("default")
_EXAMPLES = int(os.environ.get("CORRUPT_EXAMPLES", "12"))
#: What an engine that is away raises: for a corrupt value, one call may.
AWAY = (StoreUnavailable, OutcomeUnknown)


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url, drift_interval_s=1, presence_ttl_s=60) as opened:
        yield opened


class Scene:
    """Of its own: a taken trip, one on offer, one that was declined; drivers who hold, see and decline."""

    def __init__(self, city: City) -> None:
        self.city = city
        name = secrets.token_hex(4)
        self.holder, self.free, self.loser = (f"{kind}-{name}" for kind in ("hold", "free", "lose"))
        self.rider = f"rider-{name}"
        self.taken = self.offered = self.declined = ""

    async def set(self) -> None:
        city = self.city
        for name in (self.holder, self.free, self.loser):
            await city.parts.presence.register(name, driver(name), "127.0.0.1", "")
        await city.online(self.holder, self.free, self.loser, location=PLACE)
        self.taken, self.offered, self.declined = [
            await city.trip(customer=self.rider) for _ in range(3)
        ]
        assert (await city.act(driver(self.holder), "accept", self.taken, "k1")).status == 200
        await city.act(driver(self.loser), "accept", self.taken, "k2")
        await city.act(driver(self.loser), "decline", self.declined)
        # As many drivers as trips: what an earlier scene has shown of that would hold offers for a round.
        await city.redis("DEL", KEYS.matching)
        await _or_refused(city.parts.offers.run_due("default"))

    async def keys(self) -> list[str]:
        """All keys of the zone, and some that are there only now and then."""
        now_and_then = [
            KEYS.loading, KEYS.ready, KEYS.presence_look, KEYS.drift_look, KEYS.matching,
            KEYS.turned_down, KEYS.claims,
            *(name(self.offered) for name in (KEYS.trip_claim, KEYS.passed, KEYS.barred)),
            KEYS.driver_claim(self.free), KEYS.inbox(self.free),
            KEYS.queue("jfk", "car"), KEYS.queue_look, KEYS.heat_look,
            KEYS.heat(1), KEYS.unheard_since, KEYS.filled, KEYS.catching_up, KEYS.caught_up,
        ]  # fmt: skip
        mine = (self.holder, self.free, self.loser, self.rider, self.taken, self.offered, self.declined)
        found = await self.city.redis("KEYS", KEYS.prefix + "*")
        shared = [*names_of_zone(KEYS), KEYS.geo("car")]
        return sorted({*now_and_then, *(n for n in found if n in shared or any(i in n for i in mine))})

    async def go_on(self) -> None:
        """Everything that a server does in a second, with everything that the people here may do."""
        parts = self.city.parts
        zone = parts.zones.get("default")
        assert zone is not None
        views = ZoneViewScripts(parts.live.pipeline)
        for job in (
            Waves(parts.offers, "default").run(), reconcile_job(parts, "default").run(),
            absent_drivers_job(parts, "default").run(), presence_flush_job(parts).run(),
            parts.snapshots.of(driver(self.holder)), parts.snapshots.of(driver(self.free)),
            parts.positions.take(self.free, [(*PLACE, None)]),
            parts.reads.pending_near(driver(self.free), 9),
            views.read_drivers(KEYS, [self.holder, self.free]), views.read_waves(KEYS, [self.offered]),
            views.events_after(KEYS, "0-0", 1_000_000),
            self.act(driver(self.loser), "decline", self.offered),
            self.act(driver(self.holder), "accept", self.taken, "k1"),
            self.act(driver(self.loser), "accept", self.taken, "k2"),
            self.act(driver(self.holder), "arrive", self.taken),
            self.city.available(self.free, availability_status="available"), self.watched(),
        ):  # fmt: skip
            await _or_refused(job)

    async def watched(self) -> None:
        holder = zone_holder(self.city.parts)
        try:
            await holder.beat()
            watch = drift_watch_job(self.city.parts, holder)
            watch._check._pause_s = 0.01
            await watch.run()
        finally:
            await holder.stop()

    async def act(self, actor: Actor, action: str, trip: str, key: str | None = None) -> Answer | None:
        """What was answered; None for a `503`."""
        return await _or_refused(self.city.act(actor, action, trip, key))

    async def ends_well(self) -> None:
        """Every trip comes to its end, by whom it should."""
        for action in ("arrive", "start", "complete"):
            await self._until(driver(self.holder), action, self.taken)
        await self._until(driver(self.free), "accept", self.offered)
        await self._until(rider(self.rider), "cancel", self.offered)
        await self._until(driver(self.free), "accept", self.declined)
        await self._until(rider(self.rider), "cancel", self.declined)
        for name in (self.holder, self.free, self.loser):
            assert (await self.city.available(name, is_online=False)).status == 200

    async def _until(self, actor: Actor, action: str, trip: str) -> None:
        answer = None
        for _ in range(5):
            answer = await self.act(actor, action, trip)
            if answer is not None and (answer.status == 200 or code_of(answer) == "invalid_trip_status"):
                return
            await asyncio.sleep(0.05)
        raise AssertionError((action, trip, answer))


async def _or_refused(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    except (*AWAY, Refusal):
        return None


async def _fsck(city: City) -> dict[str, Any]:
    parts = city.parts
    bench = Workbench(
        parts.settings, Zones(), parts.live, parts.ledger, parts.authorities, parts.rehydration
    )
    return await fsck(bench, ["default"], repairs=True)


async def _survives(city: City, scene: Scene, what: str, *, operator: bool) -> None:
    """Where an `operator` helps, what is well-formed and wrong is put right, too."""
    try:
        for _ in range(2):
            await scene.go_on()
            await city.redis("DEL", KEYS.drift_look)  # its time has passed
        if operator:
            result = await _fsck(city)
            assert result["remaining"] == 0, result
        await scene.ends_well()
        assert await city.double_assignments() == 0
    except Exception as error:
        raise AssertionError(what) from error


Corrupt = Callable[[City, str, str | bytes], Coroutine[Any, Any, object]]


async def _of_another_type(city: City, name: str, text: str | bytes) -> None:
    kind = await city.redis("TYPE", name)
    await city.redis("DEL", name)
    if kind == "hash":
        await city.redis("RPUSH", name, text)
    else:
        await city.redis("HSET", name, "f", text)


async def _with_garbage(city: City, name: str, text: str | bytes) -> None:
    """The right type, and what no server writes."""
    parts = parse_name(name)
    assert parts is not None
    match SHAPES[parts.kind].type:
        case "string":
            # A claim or lock with a life ends by itself.
            life_ms = 60_000 if parts.kind in ("idem", "presence") else 100
            await city.redis("SET", name, text, "PX", life_ms)
        case "hash":
            fields = await city.redis("HGETALL", name)
            names = list(fields if isinstance(fields, dict) else fields[::2]) or ["fence"]
            await city.redis("HSET", name, random.choice(names), text)
        case "list":
            await city.redis("RPUSH", name, text)
            await city.redis("LPUSH", name, text)
        case "zset":
            await city.redis("ZADD", name, random.choice([0, 1, "+inf", "-inf", 2**60]), text)
        case "set":
            await city.redis("SADD", name, text)
        case "stream":
            await city.redis("XADD", name, "*", text or "f", text)


async def _cut_down(city: City, name: str, text: str | bytes) -> None:
    """A part of it, or nothing, is there."""
    fields = await city.redis("HGETALL", name) if await city.redis("TYPE", name) == "hash" else None
    if fields:
        names = list(fields if isinstance(fields, dict) else fields[::2])
        await city.redis("HDEL", name, *random.sample(names, len(names) // 2 + 1))
    else:
        await city.redis("DEL", name)


async def _for_ever(city: City, name: str, text: str | bytes) -> None:
    """It never ends; what is not there is there now, as a server would write it."""
    parts = parse_name(name)
    assert parts is not None
    if SHAPES[parts.kind].type == "string" and not await city.redis("EXISTS", name):
        await city.redis("SET", name, text or "x")
    await city.redis("PERSIST", name)


TEXTS = ["", "x", "-1", "1e400", "nan", "{}", "a b c", "9" * 30, "\0", "L x", "pending", b"\xff"]
CORRUPTIONS: list[Corrupt] = [_of_another_type, _with_garbage, _cut_down, _for_ever]


@pytest.mark.parametrize("corruption, value", [(_of_another_type, "x"), (_with_garbage, b"\xff")])
async def test_every_key(city: City, corruption: Corrupt, value: str | bytes) -> None:
    scene = Scene(city)
    await scene.set()
    kinds = {parts.kind: name for name in await scene.keys() if (parts := parse_name(name))}
    assert kinds.keys() == SHAPES.keys()
    at_once = 4
    for some in (list(kinds)[i : i + at_once] for i in range(0, len(kinds), at_once)):
        scene = Scene(city)
        await scene.set()
        of_kind = {parts.kind: name for name in await scene.keys() if (parts := parse_name(name))}
        for kind in some:
            await corruption(city, of_kind[kind], value)
        await _survives(city, scene, f"{corruption.__name__} {value!r}: {some}", operator=False)


async def test_whatever_stands_at_a_key(city: City) -> None:
    loop = asyncio.get_running_loop()

    async def example(corruption: Corrupt, at: float, text: str | bytes, seed: int) -> None:
        scene = Scene(city)
        await scene.set()
        names = await scene.keys()
        random.seed(seed)
        name = names[int(at * len(names))]
        await corruption(city, name, text)
        what = f"{corruption.__name__} {name} {text!r} {seed}"
        await _survives(city, scene, what, operator=corruption is _with_garbage)

    @settings(
        max_examples=_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        st.sampled_from(CORRUPTIONS),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        st.integers(0, 1_000),
    )
    def fuzz(corruption: Corrupt, at: float, text: str | bytes, seed: int) -> None:
        asyncio.run_coroutine_threadsafe(example(corruption, at, text, seed), loop).result(60)

    await asyncio.to_thread(fuzz)


@pytest.mark.parametrize("kind", ["unheard-since", "filled"])
@pytest.mark.parametrize("value", ["nonsense", "0", "-5", "9" * 15, "9" * 20, None])
async def test_a_zone_loads_whatever_stands_at_what_only_loads_read(
    city: City, kind: str, value: str | None
) -> None:
    """None stands for a list."""
    await city.trip()
    name = KEYS.prefix + kind
    await city.redis("DEL", name, KEYS.epoch)
    if value is None:
        await city.redis("RPUSH", name, "x")
    else:
        await city.redis("SET", name, value)
    async with asyncio.timeout(10):
        while await city.redis("EXISTS", KEYS.epoch) == 0:
            try:
                await city.parts.rehydration.warm("default")
            except StoreUnavailable:
                await asyncio.sleep(0.02)  # it is looked into meanwhile
    assert await city.redis("EXISTS", KEYS.unheard_since) == 0
