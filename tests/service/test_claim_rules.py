"""The claims over Postgres say what the Lua scripts say, of every state of a trip and a driver."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.authority import Authority, Engine
from dispatcher.live.claims import WAITED_FOR
from dispatcher.service.ledger_claims import LedgerClaims
from tests.harness.services import City, code_of, driver, open_city, rider

_PATHS = {
    "pending": (),
    "accepted": ("accept",),
    "arrived": ("accept", "arrive"),
    "ongoing": ("accept", "arrive", "start"),
    "completed": ("accept", "arrive", "start", "complete"),
}


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


async def _decide(city: City, engine: Engine) -> None:
    await city.postgres.execute(
        "UPDATE zone_authorities SET engine = $1, fence = fence + 1, changed_at = now()", engine
    )
    await city.parts.authorities.refresh()
    assert city.parts.authorities.of("default") == Authority(engine, await _fence(city))
    if engine is Engine.REDIS:
        await city.parts.rehydration.rebuild("default")


async def _fence(city: City) -> int:
    return int(await city.postgres.fetchval("SELECT fence FROM zone_authorities"))


async def _ask_everything(city: City, mark: str) -> list[tuple[Any, ...]]:
    """The same calls, in the same states, whoever decides: what each is answered."""
    told: list[tuple[Any, ...]] = []

    def tell(*what: Any, answer: Any) -> None:
        told.append((*what, answer.status, code_of(answer)))

    states = list(_PATHS)
    free, holder = f"free-{mark}", f"holder-{mark}"
    await city.online(free, f"busy-{mark}", f"later-{mark}")
    await city.available(f"off-{mark}", is_online=False)
    await city.online(f"away-{mark}", availability_status="unavailable")
    busy_trip = await city.trip(customer=f"b-{mark}")
    assert (await city.act(driver(f"busy-{mark}"), "accept", busy_trip)).status == 200
    for state in [*states, "cancelled", "missing"]:
        trip, owner = "default_missing", f"{holder}-{state}"
        if state != "missing":
            await city.online(owner)
            trip = await city.trip(customer=f"c-{mark}")
            for action in _PATHS.get(state, ()):
                assert (await city.act(driver(owner), action, trip)).status == 200
        if state == "cancelled":
            assert (await city.act(rider(f"c-{mark}"), "cancel", trip)).status == 200
        # Refusals first: none of these changes anything.
        for who, version in itertools.product(("off", "away", "busy", "nobody", "free"), (None, 9)):
            if (who, version, state) != ("free", None, "pending"):
                answer = await city.act(driver(f"{who}-{mark}"), "accept", trip, version=version)
                tell(state, "accept", who, version, answer=answer)
        answer = await city.act(driver(free), "decline", trip, version=9)
        tell(state, "decline", 9, answer=answer)
        for action in ("arrive", "start", "complete", "cancel"):
            answer = await city.act(driver(free), action, trip)
            tell(state, "stranger", action, answer=answer)
            answer = await city.act(driver(owner), action, trip, version=9)
            tell(state, "holder", action, 9, answer=answer)
        tell(state, "other rider", answer=await city.act(rider("x"), "cancel", trip))
        operator = Actor("a", Role.ADMIN)
        tell(state, "operator", answer=await city.act(operator, "cancel", trip, version=9))
        if state != "missing":
            suffix = trip.removeprefix("default_")
            with pytest.raises(AssertionError, match="trip_exists"):
                await city.trip(customer=f"c-{mark}", trip_request_id=suffix)
            for change in ({"vehicle_type": "van"}, {"is_online": False}, {"is_online": True}):
                tell(state, *change, answer=await city.available(owner, **change))
            told.append((state, (await city.row(trip))["current_status"]))
    return told


async def test_both_roads_answer_alike(city: City) -> None:
    by_redis = await _ask_everything(city, "r")
    await _decide(city, Engine.POSTGRES)
    by_postgres = await _ask_everything(city, "p")
    assert len(by_redis) > 150
    assert by_postgres == by_redis
    assert len({code for *_, code in by_redis}) >= 12
    await _decide(city, Engine.REDIS)
    assert await city.double_assignments() == 0
    assert await city.postgres.fetchval(
        "SELECT count(*) FROM trip_requests WHERE driver_id = 'busy-p' AND current_status = 'accepted'"
    )


@pytest.mark.parametrize("engine", list(Engine))
async def test_an_accept_waits_for_a_change_that_is_no_accept(city: City, engine: Engine) -> None:
    """An expiry whose commit fails has taken the trip from nobody."""
    await city.online("d1")
    trip = await city.trip()
    await _decide(city, engine)
    claims = city.parts.coordinator._by_ledger.claims
    assert isinstance(claims, LedgerClaims)
    claim, token = city.keys().trip_claim(trip), f"node.1{WAITED_FOR}"
    if engine is Engine.REDIS:
        await city.redis("SET", claim, token, "PX", 10_000)
    else:
        claims._held.hold(token, [f"trip {trip}"], lease_ms=10_000)
    accept = asyncio.ensure_future(city.act(driver("d1"), "accept", trip))
    done, _ = await asyncio.wait([accept], timeout=0.1)
    assert not done
    if engine is Engine.REDIS:
        await city.redis("DEL", claim)
    else:
        claims._held.drop(token, [f"trip {trip}"])
    assert (await accept).status == 200
