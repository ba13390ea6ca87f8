"""An operator asks one driver for a trip: the offer is as any other, and its row says who made it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.times import iso
from dispatcher.core.zones import Wave, Zone, Zones
from dispatcher.ledger.database import QUERIES
from dispatcher.service.answers import Answer
from dispatcher.service.deadlines import Deadlines
from tests.harness.services import PLACE, City, code_of, driver, open_city, rider

OPERATOR = Actor("op-1", Role.ADMIN)
FAR = (PLACE[0] + 0.2, PLACE[1])
ZONE = Zone("default", waves=(Wave(1, 2_000.0, 30.0),), accept_policy="offered")
ZONES = Zones([ZONE, Zone("north")])


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url, zones=ZONES) as opened:
        yield opened


async def here(city: City, *names: str, at: tuple[float, float] = PLACE, **more: Any) -> None:
    for name in names:
        await city.parts.presence.register(f"c-{name}", driver(name), None, "")
        await city.available(name, is_online=True, location=at, **more)


async def ask(city: City, trip: str, name: str, operator: Actor = OPERATOR) -> Answer:
    return await city.parts.operator_offers.offer(Caller(operator), trip, name)


async def rows(city: City, trip: str) -> list[dict[str, Any]]:
    return await city.parts.reads.offers(trip)


async def test_a_driver_far_away_is_asked_and_takes_the_trip(city: City) -> None:
    await here(city, "near-1", "near-2")
    await here(city, "far", at=FAR)
    trip = await city.trip()
    await city.parts.offers.run_due("default")  # one of the near ones has an offer now
    assert code_of(await city.act(driver("far"), "accept", trip)) == "not_offered"
    answer = await ask(city, trip, "far")
    assert answer.status == 200, answer
    body = orjson.loads(answer.body)
    assert (body["response_code"], body["trip"]["id"]) == ("trip_offered", trip)
    assert 0 < body["offer"]["expires_in_ms"] <= 30_000
    row = next(row for row in await rows(city, trip) if row["driver_id"] == "far")
    assert (row["offered_by"], row["outcome"]) == ("op-1", "open")
    assert row["distance_m"] == pytest.approx(22_239, abs=50)
    assert {row["driver_id"]: row["offered_by"] for row in await rows(city, trip)} in (
        {"far": "op-1", "near-1": None}, {"far": "op-1", "near-2": None},
    )  # fmt: skip
    holders = await city.redis("ZRANGE", city.keys().offers(trip), 0, -1)
    assert len(holders) == 2, "the offer of the wave stays"
    assert (await city.act(driver("far"), "accept", trip)).status == 200
    assert (await city.row(trip))["driver_id"] == "far"


async def test_asked_again_it_is_the_same_offer(city: City) -> None:
    await here(city, "d1")
    trip = await city.trip()
    answers = await asyncio.gather(*(ask(city, trip, "d1") for _ in range(20)))
    assert {answer.status for answer in answers} <= {200, 409}
    made = {orjson.loads(a.body)["offer"]["deadline"] for a in answers if a.status == 200}
    assert len(made) == 1
    assert {code_of(answer) for answer in answers if answer.status == 409} <= {"trip_busy"}
    again = await ask(city, trip, "d1", Actor("op-2", Role.ADMIN))
    assert orjson.loads(again.body)["offer"]["deadline"] in made
    saved = await city.postgres.fetch("SELECT offered_by FROM trip_offers WHERE trip_id = $1", trip)
    assert [row["offered_by"] for row in saved] == ["op-1"]


async def test_who_may_not_have_it_is_not_asked(city: City) -> None:
    trip = await city.trip()
    with pytest.raises(Refusal) as unknown:
        await ask(city, "nowhere_1", "d1")
    assert unknown.value.code == "trip_not_found"
    assert code_of(await ask(city, "default_none", "d1")) == "trip_not_found"
    assert code_of(await ask(city, trip, "nobody")) == "driver_not_found"
    await here(city, "d1", "declines", "van", "stale", "away", "busy")
    await here(city, "north", zone="north")
    assert code_of(await ask(city, trip, "north")) == "driver_not_online"
    await city.available("d1", is_online=False)
    assert code_of(await ask(city, trip, "d1")) == "driver_not_online"
    await city.available("d1", is_online=True, availability_status="unavailable")
    assert code_of(await ask(city, trip, "d1")) == "driver_not_available"
    assert (await ask(city, trip, "busy")).status == 200
    other = await city.trip(customer="r2")
    assert (await city.act(driver("busy"), "accept", trip)).status == 200
    assert code_of(await ask(city, other, "busy")) == "driver_not_available"
    assert code_of(await ask(city, trip, "van")) == "trip_already_assigned"
    assert (await city.act(driver("declines"), "decline", other)).status == 200
    await city.available("van", vehicle_type="van", location=PLACE)
    await city.redis("HSET", city.keys().driver("stale"), "fix_ms", 1)
    await city.redis("ZREM", city.keys().present, "driver:away")
    for name, filters in (
        ("declines", ["barred"]), ("van", ["other_vehicle_type"]), ("stale", ["stale_position"]),
        ("away", ["not_present"]),
    ):  # fmt: skip
        problem = orjson.loads((await ask(city, other, name)).body)
        assert (problem["response_code"], problem["filters"]) == ("driver_not_eligible", filters)
        assert problem["message"].startswith("No offer: ")
    assert (await city.act(rider("r2"), "cancel", other)).status == 200
    assert code_of(await ask(city, other, "declines")) == "trip_not_pending"


async def test_an_offer_by_hand_and_an_accept_at_once_have_one_winner(city: City) -> None:
    await here(city, *(f"d{i}" for i in range(6)))
    trips = [await city.trip(customer=f"r{i}") for i in range(6)]
    for _ in range(3):
        await asyncio.gather(
            *(ask(city, trip, f"d{i}") for i in range(6) for trip in trips),
            *(city.act(driver(f"d{i}"), "accept", trip) for i in range(6) for trip in trips),
        )
    assert await city.double_assignments() == 0
    held = await city.postgres.fetch(
        "SELECT driver_id FROM trip_requests WHERE current_status = 'accepted'"
    )
    assert len({row["driver_id"] for row in held}) == len(held) > 0


async def test_it_counts_against_the_operators_limit(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url, limit_operator="2/60") as city:
        trip = await city.trip(customer="r9")
        first = await ask(city, trip, "nobody")
        assert first.limit is not None
        assert first.limit.remaining == 1
        await ask(city, trip, "nobody")
        with pytest.raises(Refusal) as limited:
            await ask(city, trip, "nobody")
        assert limited.value.code == "rate_limit_exceeded"


class Screen:
    """A driver's socket that counts the offers it was shown."""

    def __init__(self, city: City, name: str) -> None:
        self.offers: list[Any] = []
        city.parts.hub.add(f"driver:{name}", self)

    def send(self, frame: bytes, *, replaces: str | None = None) -> None:
        if (told := orjson.loads(frame))["type"] == "offer":
            self.offers.append(told)

    def resync(self) -> None:
        """No snapshot is asked for here."""


@pytest.fixture
async def postgres_decides(city: City) -> City:
    """A driver `d1` who is free, in a zone that Postgres decides about alone."""
    await here(city, "d1")
    await city.parts.positions.save()
    await city.parts.authorities._take_from_redis(["default"])
    return city


async def test_a_double_click_without_redis_makes_one_offer_and_one_frame(
    postgres_decides: City,
) -> None:
    city, shown = postgres_decides, Screen(postgres_decides, "d1")
    trip = await city.trip()
    answers = await asyncio.gather(*(ask(city, trip, "d1") for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    assert len({orjson.loads(answer.body)["offer"]["deadline"] for answer in answers}) == 1
    assert len(await rows(city, trip)) == len(shown.offers) == 1


async def test_operators_at_once_keep_to_a_drivers_limit_without_redis(postgres_decides: City) -> None:
    city, shown = postgres_decides, Screen(postgres_decides, "d1")
    trips = [await city.trip(customer=f"r{i}") for i in range(8)]
    answers = await asyncio.gather(
        *(ask(city, trip, "d1", Actor(f"op-{i}", Role.ADMIN)) for i, trip in enumerate(trips))
    )
    most = ZONE.offers_per_driver
    assert sorted(answer.status for answer in answers) == [200] * most + [409] * (8 - most)
    refused = [orjson.loads(answer.body) for answer in answers if answer.status == 409]
    assert {tuple(problem["filters"]) for problem in refused} == {("enough_offers",)}
    saved = await city.postgres.fetchval("SELECT count(*) FROM trip_offers WHERE outcome = 'open'")
    assert saved == len(shown.offers) == most


@pytest.mark.parametrize("is_saved", [False, True], ids=["not saved", "saved, and not heard"])
@pytest.mark.parametrize("breaks_off", ["error", "deadline"])
async def test_an_offer_whose_save_broke_off_is_shown_when_asked_again(
    postgres_decides: City, monkeypatch: pytest.MonkeyPatch, is_saved: bool, breaks_off: str
) -> None:
    city, shown = postgres_decides, Screen(postgres_decides, "d1")
    trip = await city.trip()
    add_offer = QUERIES.add_offer

    async def broken(connection: Any, **given: Any) -> Any:
        if is_saved:
            await add_offer(connection, **given)
            await connection.execute("COMMIT")
        if breaks_off == "deadline":
            await asyncio.Event().wait()
        raise OSError("the connection is lost")

    with monkeypatch.context() as patch:
        patch.setattr(QUERIES, "add_offer", broken)
        with pytest.raises(StoreUnavailable):
            await Deadlines(0.2).keep(ask(city, trip, "d1"))
    assert (len(await rows(city, trip)), shown.offers) == (is_saved, [])
    for _ in range(2):
        answer = await ask(city, trip, "d1")
        assert answer.status == 200
        offer = orjson.loads(answer.body)["offer"]
        assert [iso(frame["deadline_ms"]) for frame in shown.offers] == [offer["deadline"]]
    assert len(await rows(city, trip)) == 1
    assert city.parts.effects.offer_log.unsaved()["offers"] == 0


async def test_a_server_that_hangs_as_it_offers_keeps_no_connections_of_others(
    postgres_decides: City,
) -> None:
    city = postgres_decides
    trip = await city.trip()
    async with city.postgres.transaction():
        await QUERIES.lock_offers_of_driver(city.postgres, driver_id="d1")
        with pytest.raises(StoreUnavailable):
            await ask(city, trip, "d1")
    assert (await ask(city, trip, "d1")).status == 200


async def test_a_server_that_has_not_heard_offers_to_whom_postgres_has_online(
    city: City, redis_url: str, database_url: str
) -> None:
    """What this server's Redis remembers is from before the others have gone on without it."""
    await here(city, "d1")
    await city.available("d1", is_online=False)
    trip = await city.trip()
    async with open_city(redis_url, database_url, zones=ZONES) as other:
        await other.parts.authorities._take_from_redis(["default"])
        await other.available("d1", is_online=True, location=PLACE)
        await other.parts.positions.save()
        assert not city.parts.authorities.of("default").is_degraded
        answer = await ask(city, trip, "d1")
        assert answer.status == 200, answer
        assert len(await rows(city, trip)) == 1


async def test_a_servers_own_offer_whose_save_failed_is_made_and_shown_by_its_next_run(
    postgres_decides: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush must not save it meanwhile: it would stand open, and nobody would see it."""
    city, shown = postgres_decides, Screen(postgres_decides, "d1")
    trip, database = await city.trip(), city.parts.ledger.database

    async def fail(_name: str, **_given: Any) -> int:
        raise StoreUnavailable("postgres")

    with monkeypatch.context() as patch:
        patch.setattr(database, "execute", fail)
        with pytest.raises(StoreUnavailable):
            await city.parts.ledger_offers.run([ZONE])
    await city.parts.effects.offer_log.save(database)
    assert (await rows(city, trip), shown.offers) == ([], [])
    assert await city.parts.ledger_offers.run([ZONE]) == 1
    assert len(await rows(city, trip)) == len(shown.offers) == 1


async def test_a_trip_that_is_taken_meanwhile_is_not_offered_without_redis(
    postgres_decides: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    city, shown = postgres_decides, Screen(postgres_decides, "d1")
    await city.available("d2", is_online=True, location=PLACE)
    await city.parts.positions.save()
    trip, ledger_offers = await city.trip(), city.parts.ledger_offers
    offer_by_hand = ledger_offers.offer_by_hand
    answer = await ask(city, trip, "d2")  # only who is offered it may take it
    assert answer.status == 200, answer.body

    async def late(*given: Any) -> Any:
        assert (await city.act(driver("d2"), "accept", trip)).status == 200
        return await offer_by_hand(*given)

    monkeypatch.setattr(ledger_offers, "offer_by_hand", late)
    assert code_of(await ask(city, trip, "d1")) == "trip_busy"
    assert shown.offers == []
    assert code_of(await ask(city, trip, "d1")) == "trip_already_assigned"
