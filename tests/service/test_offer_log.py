"""What Postgres is told of offers: each outcome stands with the offer that it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import moment, now_ms
from dispatcher.ledger.database import Database
from dispatcher.service import offer_log as offer_log_module
from dispatcher.service.offer_log import OfferLog, OfferOutcome, OfferRow
from tests.harness.services import PLACE, City, driver, open_city

ANSWER_MS = 8_000
T0 = now_ms() - 30_000


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


def offer(wave: int, at_ms: int, driver_id: str = "d1") -> OfferRow:
    return OfferRow("z_1", driver_id, wave, 100.0, at_ms, at_ms + ANSWER_MS)


async def rows(city: City) -> list[tuple[str, int, str, int | None]]:
    """Driver, wave, outcome, and its time in ms after T0."""
    found = await city.postgres.fetch(
        "SELECT driver_id, wave, outcome, outcome_at FROM trip_offers ORDER BY driver_id, wave"
    )
    start = moment(T0)
    return [
        (row[0], row[1], row[2], row[3] and round((row[3] - start) / timedelta(milliseconds=1)))
        for row in found
    ]


async def save(city: City, offer_log: OfferLog | None = None, rounds: int = 2) -> None:
    for _ in range(rounds):  # an outcome waits for one round
        await (offer_log or city.parts.effects.offer_log).save(city.parts.ledger.database)


async def test_an_outcome_ends_the_offer_that_stood_then_and_no_later_one(city: City) -> None:
    offer_log = OfferLog()
    offer_log.add_offers([offer(1, T0), offer(2, T0 + 100)])
    offer_log.record("z_1", ["d1"], OfferOutcome.WITHDRAWN, T0 + 76)
    offer_log.record("z_1", ["d1"], OfferOutcome.ACCEPTED, T0 + 700)
    await save(city, offer_log)
    assert await rows(city) == [("d1", 1, "withdrawn", 76), ("d1", 2, "accepted", 700)]


async def test_an_outcome_is_no_second_one_of_an_offer_that_has_ended(city: City) -> None:
    offer_log = OfferLog()
    offer_log.add_offers([offer(1, T0)])
    for at_ms, outcome in ((30, OfferOutcome.DECLINED), (40, OfferOutcome.WITHDRAWN)):
        offer_log.record("z_1", ["d1"], outcome, T0 + at_ms)
        await save(city, offer_log)
    assert await rows(city) == [("d1", 1, "declined", 30)]


async def test_an_offer_has_expired_when_the_same_look_asks_again(city: City) -> None:
    offer_log, again = OfferLog(), T0 + ANSWER_MS
    offer_log.add_offers([offer(1, T0), offer(2, again)])
    offer_log.record("z_1", ["d1"], OfferOutcome.EXPIRED, again)
    await save(city, offer_log)
    assert await rows(city) == [("d1", 1, "expired", ANSWER_MS), ("d1", 2, "open", None)]


async def test_an_outcome_waits_for_its_offer(city: City) -> None:
    """Another server has made the offer, and could not save it for a while."""
    offer_log, others, start_ms = OfferLog(), OfferLog(), now_ms()
    offer_log.record("z_1", ["d1"], OfferOutcome.WITHDRAWN, start_ms + 76)
    await save(city, offer_log, rounds=3)
    others.add_offers([offer(1, start_ms)])
    await others.save_offers(city.parts.ledger.database)
    await save(city, offer_log, rounds=1)
    assert [row[:3] for row in await rows(city)] == [("d1", 1, "withdrawn")]
    assert offer_log.unsaved()["outcomes"] == 0


async def test_an_outcome_without_an_offer_is_given_up(city: City) -> None:
    offer_log = OfferLog()
    offer_log.record("z_1", ["d1"], OfferOutcome.DECLINED, now_ms() - 61_000)
    offer_log.record("z_1", ["d2"], OfferOutcome.WITHDRAWN, now_ms())
    await save(city, offer_log)
    assert offer_log.unsaved()["outcomes"] == 1, "the one of a minute ago is not waited for"


async def test_a_second_offer_in_one_wave_stands(city: City) -> None:
    """After a head start the same wave goes on, and may ask who let it pass once more."""
    offer_log = OfferLog()
    offer_log.add_offers([offer(1, T0), offer(1, T0 + ANSWER_MS)])
    offer_log.record("z_1", ["d1"], OfferOutcome.EXPIRED, T0 + ANSWER_MS)
    offer_log.record("z_1", ["d1"], OfferOutcome.ACCEPTED, T0 + ANSWER_MS + 50)
    await save(city, offer_log)
    assert await rows(city) == [("d1", 1, "accepted", ANSWER_MS + 50)]


async def close_overdue(city: City, events: list[tuple[str, str, int]]) -> None:
    """An offer of T0 to d1 whose outcome was lost, and the trip's events since: what, whose, when."""
    offer_log = OfferLog()
    offer_log.add_offers([offer(1, T0 - 60_000)])
    await offer_log.save_offers(city.parts.ledger.database)
    for version, (event, driver_id, at_ms) in enumerate(events):
        await city.postgres.execute(
            "INSERT INTO trip_events (trip_id, version, event, actor_id, actor_role, payload, created_at)"
            " VALUES ('z_1', $1, $2, $3, 'driver', jsonb_build_object('driver_id', $3::text), $4)",
            version, event, driver_id, moment(T0 - 60_000 + at_ms),
        )  # fmt: skip
    database: Database = city.parts.ledger.database
    await database.execute("close_overdue_offers")


@pytest.mark.parametrize(
    ("events", "outcome", "after_ms"),
    [
        ([], "expired", ANSWER_MS),
        ([("accepted", "d1", 50), ("completed", "d1", 90)], "accepted", 50),
        ([("accepted", "d2", 50), ("released", "d2", 60), ("accepted", "d1", 70)], "withdrawn", 50),
        ([("cancelled", "r1", 50)], "withdrawn", 50),
        ([("accepted", "d2", ANSWER_MS + 1)], "expired", ANSWER_MS),
    ],
)
async def test_the_history_tells_an_outcome_that_was_lost(
    city: City, events: list[tuple[str, str, int]], outcome: str, after_ms: int
) -> None:
    await close_overdue(city, events)
    assert await rows(city) == [("d1", 1, outcome, after_ms - 60_000)]


async def test_a_driver_who_wins_after_a_release_has_accepted_their_second_offer(city: City) -> None:
    """The first accept withdraws the first offer, the second one is made while that is not saved."""
    await city.online("d1", "d2", location=PLACE)
    for name in ("d1", "d2"):
        await city.parts.presence.register(f"c-{name}", driver(name), "127.0.0.1", "a phone")
    trip = await city.trip()
    await city.parts.offers.run_due("default")
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    assert (await city.act(driver("d1"), "cancel", trip)).status == 200
    await city.parts.offers.run_due("default")
    assert (await city.act(driver("d2"), "accept", trip)).status == 200
    await save(city, rounds=3)
    found = [row[:3] for row in await rows(city)]
    assert found == [("d1", 1, "accepted"), ("d2", 1, "withdrawn"), ("d2", 2, "accepted")]
    database = city.parts.ledger.database
    for name in ("outcomes_before_offers", "winning_offers_ended_otherwise"):
        assert await database.rows(name) == [], name


async def test_a_decline_ends_no_offer_that_has_ended(city: City) -> None:
    """The second offer is not in Postgres yet when it is declined: the first one had been let pass."""
    await city.online("d1", location=PLACE)
    trip = await city.trip()
    offer_log = city.parts.effects.offer_log
    start_ms = now_ms() - 9_000
    offer_log.add_offers([OfferRow(trip, "d1", 1, 9.0, start_ms, start_ms + ANSWER_MS)])
    offer_log.record(trip, ["d1"], OfferOutcome.EXPIRED, start_ms + ANSWER_MS)
    await save(city)
    again_ms = now_ms() - 1
    offer_log.add_offers([OfferRow(trip, "d1", 2, 9.0, again_ms, again_ms + ANSWER_MS)])
    assert (await city.act(driver("d1"), "decline", trip)).status == 200
    await save(city)
    told = [(row["wave"], row["outcome"]) for row in await city.parts.reads.offers(trip)]
    assert told == [(1, "expired"), (2, "declined")]
    page = await city.parts.operator_reads.trip_offers(trip, None, 9)
    assert [offer["wave"] for offer in page["offers"]] == [1, 2]


class Failing:
    """A Postgres that goes away after some statements."""

    def __init__(self, database: Database, statements: int) -> None:
        self._database = database
        self._left = statements

    async def execute(self, name: str, **given: Any) -> None:
        self._spend()
        await self._database.execute(name, **given)

    async def rows(self, name: str, **given: Any) -> Any:
        self._spend()
        return await self._database.rows(name, **given)

    def _spend(self) -> None:
        if self._left == 0:
            raise StoreUnavailable("postgres is away")
        self._left -= 1


async def test_what_waits_is_bounded_and_saved_in_parts(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long outage of Postgres fills no memory, and no statement is too long to end in time."""
    monkeypatch.setattr(offer_log_module, "_MAX_ROWS", 100)
    monkeypatch.setattr(offer_log_module, "_ROWS_AT_ONCE", 30)
    offer_log = OfferLog()
    drivers = [f"d{n:03}" for n in range(120)]
    offer_log.add_offers(offer(1, T0, name) for name in drivers)
    for name in drivers:
        offer_log.record("z_1", [name], OfferOutcome.DECLINED, T0 + 10)
    assert all(50 < number <= 100 for number in offer_log.unsaved().values())

    # Whatever statement it breaks off at, nothing that was left is lost or saved twice.
    for statements in range(9):
        failing: Any = Failing(city.parts.ledger.database, statements)
        with contextlib.suppress(StoreUnavailable):
            await offer_log.save(failing)
    await save(city, offer_log)
    saved = await rows(city)
    assert [row[0] for row in saved] == drivers[-len(saved) :], "the newest are kept"
    assert len(saved) > 50
    assert {row[2:] for row in saved} == {("declined", 10)}
    assert offer_log.unsaved()["offers"] == 0


class Waiting:
    """A Postgres whose first statement of a name waits until it is let go."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name: str | None = name
        self.asked, self.let_go = asyncio.Event(), asyncio.Event()

    async def execute(self, name: str, **given: Any) -> None:
        await self._wait(name)
        await self._database.execute(name, **given)

    async def rows(self, name: str, **given: Any) -> Any:
        await self._wait(name)
        return await self._database.rows(name, **given)

    async def _wait(self, name: str) -> None:
        if name == self._name:
            self._name = None
            self.asked.set()
            await self.let_go.wait()


async def test_saves_that_overlap_lose_no_outcome(city: City) -> None:
    """The flush, and a server's own offers while Redis is away."""
    offer_log, start_ms = OfferLog(), now_ms()
    waiting: Any = Waiting(city.parts.ledger.database, "save_outcomes")
    offer_log.record("z_1", ["d1"], OfferOutcome.WITHDRAWN, start_ms)
    await offer_log.save(waiting)
    async with asyncio.TaskGroup() as saves:
        saves.create_task(offer_log.save(waiting))
        await waiting.asked.wait()
        offer_log.record("z_1", ["d2"], OfferOutcome.WITHDRAWN, start_ms)
        saves.create_task(offer_log.save(waiting))
        await asyncio.sleep(0)
        waiting.let_go.set()
    assert offer_log.unsaved()["outcomes"] == 2, "none has an offer yet"


async def test_a_save_that_says_it_is_done_has_saved_what_another_one_had_begun(city: City) -> None:
    offer_log = OfferLog()
    waiting: Any = Waiting(city.parts.ledger.database, "save_offers")
    offer_log.add_offers([offer(1, T0)])
    async with asyncio.TaskGroup() as saves:
        first = saves.create_task(offer_log.save(waiting))
        await waiting.asked.wait()
        second = saves.create_task(offer_log.save_offers(waiting))
        await asyncio.sleep(0)
        first.cancel()  # as by the deadline of a request
        await second
    assert await rows(city) == [("d1", 1, "open", None)]


@pytest.mark.parametrize("name", ["save_offers", "save_outcomes"])
async def test_a_save_that_is_cancelled_keeps_what_it_has_not_saved(city: City, name: str) -> None:
    offer_log = OfferLog()
    waiting: Any = Waiting(city.parts.ledger.database, name)
    offer_log.add_offers([offer(1, T0, f"d{n}") for n in range(3)])
    offer_log.record("z_1", ["d0", "d1", "d2"], OfferOutcome.WITHDRAWN, T0 + 76)
    if name == "save_outcomes":
        await offer_log.save(waiting)
    saving = asyncio.create_task(offer_log.save(waiting))
    await waiting.asked.wait()
    saving.cancel()
    await asyncio.wait([saving])
    assert offer_log.unsaved() == {"offers": 3 if name == "save_offers" else 0, "outcomes": 3}
    await save(city, offer_log)
    assert await rows(city) == [(f"d{n}", 1, "withdrawn", 76) for n in range(3)]
