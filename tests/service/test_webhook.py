"""The webhook against a receiver that answers, fails, hangs and comes back; judged by what it was told."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import structlog.testing
from aiohttp import web
from standardwebhooks import Webhook

from dispatcher.config import SettingsError, load_settings
from dispatcher.core.zones import Zone, Zones
from dispatcher.service.connections import HTTP
from dispatcher.service.webhook import Deliveries
from dispatcher.webhook.receiver import Receiver as Calls
from tests.harness.services import PLACE, City, driver, open_city, rider
from tests.service.test_operator_reads import operator_reads

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
FAST = {"webhook_secret": SECRET, "webhook_timeout_s": 0.3, "webhook_retry_s": 0.1}


@pytest.fixture(autouse=True)
def _looks_are_not_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is also one for what is due again."""
    monkeypatch.setattr("dispatcher.service.webhook._OVERDUE_S", 0.0)


ZONES = Zones([Zone("default"), Zone("north")])


class Receiver:
    """Keeps what it is told, and answers as a test wants."""

    def __init__(self) -> None:
        self.url = ""
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.tried: list[str] = []
        self.status: Callable[[str], int] = lambda _: 204
        self.hold: asyncio.Event | None = None
        self.headers: dict[str, str] = {}

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.text()
        message = Webhook(SECRET).verify(body, dict(request.headers))
        id_ = request.headers["webhook-id"]
        self.tried.append(id_)
        if self.hold is not None:
            await self.hold.wait()
        status = self.status(id_)
        if status < 300:
            self.told.append((id_, message))
        return web.Response(status=status, headers=self.headers, text="x" * 100_000)

    @property
    def types(self) -> list[str]:
        return [message["type"] for _, message in self.told]


@contextlib.asynccontextmanager
async def open_receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    application = web.Application()
    application.router.add_post("/hook", made.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook?token=hidden"
    try:
        yield made
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with open_receiver() as made:
        yield made


@pytest.fixture
async def city(redis_url: str, database_url: str, receiver: Receiver) -> AsyncIterator[City]:
    async with open_city(
        redis_url, database_url, zones=ZONES, webhook_url=[receiver.url], **FAST
    ) as made:
        yield made


async def look(*cities: City, zone: str = "default") -> None:
    for city in cities:
        for each in city.parts.webhook.deliveries:
            await each.deliver_due(zone)


async def until(done: Callable[[], Any], *cities: City, zone: str = "default") -> None:
    """Lets the servers look again and again until it is so."""
    async with asyncio.timeout(20):
        while True:
            met = done()
            if await met if isinstance(met, Awaitable) else met:
                return
            await look(*cities, zone=zone)
            await asyncio.sleep(0.02)


async def pending(city: City, stream: str = "events") -> int:
    """Entries that are handed out and not acknowledged."""
    await asyncio.sleep(0)
    (each,) = city.parts.webhook.deliveries
    count, *_ = await city.redis("XPENDING", getattr(city.keys(), stream), each._group)
    return int(count)


async def nothing_pending(city: City) -> bool:
    return await pending(city) == 0


async def a_ride(city: City, name: str = "d1") -> str:
    await city.online(name, location=PLACE)
    trip = await city.trip()
    for action in ("accept", "arrive", "start", "complete"):
        assert (await city.act(driver(name), action, trip)).status == 200
    return trip


async def test_every_event_is_told_signed_and_with_an_id_of_its_own(
    city: City, receiver: Receiver
) -> None:
    trip = await a_ride(city)
    await until(lambda: len(receiver.told) == 5, city)
    by_id = dict(receiver.told)
    assert set(by_id) == {f"evt_{trip}_{version}" for version in range(5)}
    assert sorted(receiver.types) == [
        f"trip.{event}" for event in ("accepted", "arrived", "completed", "created", "started")
    ]
    accepted = by_id[f"evt_{trip}_1"]
    assert accepted["data"]["trip"]["driver_id"] == "d1"
    assert (accepted["data"]["event"], accepted["data"]["actor_role"]) == ("accepted", "driver")
    assert accepted["timestamp"] == accepted["data"]["trip"]["accepted_at"]
    await until(lambda: nothing_pending(city), city)
    (each,) = city.parts.webhook.deliveries
    assert each.counts == {"delivered": 5, "failed": 0, "late": 0, "dead": 0}


async def test_what_fails_or_hangs_is_tried_again_and_told_once_it_is_back(
    city: City, receiver: Receiver
) -> None:
    receiver.status = lambda _: 500
    trip = await a_ride(city)
    await until(lambda: len(receiver.tried) >= 5, city)
    assert receiver.told == []
    receiver.hold = asyncio.Event()
    (each,) = city.parts.webhook.deliveries
    each._paused_until = 0.0
    before = len(receiver.tried)
    await until(lambda: len(receiver.tried) > before, city)
    await asyncio.sleep(0.4)  # longer than a call may take
    receiver.hold.set()
    receiver.hold, receiver.status = None, lambda _: 200
    each._paused_until = 0.0
    await until(lambda: len({id_ for id_, _ in receiver.told}) == 5, city)
    assert {id_ for id_, _ in receiver.told} == {f"evt_{trip}_{version}" for version in range(5)}
    await until(lambda: nothing_pending(city), city)
    assert each.counts["dead"] == 0
    assert each.counts["failed"] >= 6


async def test_a_receiver_that_is_down_is_left_alone(city: City, receiver: Receiver) -> None:
    """Nothing is given up for its sake: what happens stays in the stream until it is back."""
    receiver.status = lambda _: 503
    for name in ("d1", "d2", "d3"):
        await a_ride(city, name)
    (each,) = city.parts.webhook.deliveries
    await until(lambda: each._failures >= 5, city)
    tried = len(receiver.tried)
    for _ in range(20):
        await look(city)
        await asyncio.sleep(0.01)
    assert len(receiver.tried) <= tried + 1
    receiver.status = lambda _: 200
    await until(lambda: len({id_ for id_, _ in receiver.told}) == 15, city)
    assert each.counts["dead"] == 0


async def test_retry_after_is_obeyed(city: City, receiver: Receiver) -> None:
    receiver.status, receiver.headers = lambda _: 429, {"Retry-After": "600"}
    await city.trip()
    await until(lambda: receiver.tried, city)
    (each,) = city.parts.webhook.deliveries
    while each.counts["failed"] == 0:
        await asyncio.sleep(0.01)
    for _ in range(30):
        await look(city)
        await asyncio.sleep(0.01)
    assert len(receiver.tried) == 1


@pytest.mark.parametrize(
    ("header", "least_s", "most_s"),
    [
        ("600", 600, 600),
        ("99999999999999999999", 600, 600),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 600, 600),
        ("IN-TWO-MINUTES", 115, 120),
        ("IN-TWO-MINUTES-WITHOUT-A-ZONE", 115, 120),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("0", 0, 0),
        ("-5", None, None),
        ("1e9", None, None),
        ("soon", None, None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None, None),
        ("Wed, 21 Oct 2015 07:28:00 +9999999999999999", None, None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None, None),
    ],
)
async def test_when_a_receiver_wants_to_be_called_again(
    receiver: Receiver, header: str, least_s: float | None, most_s: float | None
) -> None:
    receiver.status = lambda _: 503
    dates = {
        "IN-TWO-MINUTES": formatdate(time.time() + 120, usegmt=True),
        "IN-TWO-MINUTES-WITHOUT-A-ZONE": formatdate(time.time() + 120),
    }
    receiver.headers = {"Retry-After": dates.get(header, header)}
    calls = Calls(receiver.url, SECRET, timeout_s=5, max_calls=1)
    outcome = await calls.call("evt_1", "{}")
    await calls.close()
    assert outcome.error == "it answered 503"
    if least_s is None or most_s is None:
        assert outcome.retry_after_s is None
    else:
        assert outcome.retry_after_s is not None
        assert least_s <= outcome.retry_after_s <= most_s


async def test_a_pause_is_told_once(city: City, receiver: Receiver) -> None:
    """However many calls were under way, and whatever they were answered."""
    receiver.status, receiver.headers = lambda id_: 503, {"Retry-After": "600"}
    receiver.hold = asyncio.Event()
    await a_ride(city)
    webhook, (each,) = city.parts.webhook, city.parts.webhook.deliveries
    assert webhook.pause_s() == 0.0
    with structlog.testing.capture_logs() as logs:
        await until(lambda: len(receiver.tried) == 5, city)
        receiver.status = lambda id_: 200 if id_.endswith("_4") else 503
        receiver.hold.set()
        await until(lambda: sum(each.counts.values()) == 5, city)
        assert [line for line in logs if line["event"].startswith("webhook")] == [
            {
                "event": "webhook is paused", "log_level": "warning", "receiver": each.receiver.shown,
                "reason": "it answered 503", "pause_s": 600.0, "failures": 1,
            }
        ]  # fmt: skip
        assert 590 < webhook.pause_s() <= 600
        tried = len(receiver.tried)
        await look(city)
        assert len(receiver.tried) == tried
        receiver.hold, receiver.status = None, lambda _: 200
        each._paused_until = asyncio.get_running_loop().time()  # it is over
        await until(lambda: len({id_ for id_, _ in receiver.told}) == 5, city)
    assert [line["event"] for line in logs if line["event"].startswith("webhook")] == [
        "webhook is paused",
        "webhook is back",
    ]
    assert webhook.pause_s() == 0.0


async def test_a_receiver_that_is_down_is_told_of_at_each_pause(city: City, receiver: Receiver) -> None:
    receiver.status = lambda _: 500
    await a_ride(city)
    (each,) = city.parts.webhook.deliveries
    with structlog.testing.capture_logs() as logs:
        await until(lambda: each._failures == 6, city)
    pauses = [line for line in logs if line["event"] == "webhook is paused"]
    assert [(line["pause_s"], line["failures"]) for line in pauses] == [(1.0, 5), (2.0, 6)]


async def test_what_is_never_taken_is_a_dead_letter(
    redis_url: str, database_url: str, receiver: Receiver
) -> None:
    async with open_city(
        redis_url, database_url, webhook_url=[receiver.url], webhook_attempts=3, **FAST
    ) as city:
        receiver.status = lambda id_: 500 if id_.endswith("_0") else 200
        first, second = await city.trip(), await city.trip(customer="r2")
        assert (await city.act(rider("r2"), "cancel", second)).status == 200
        (each,) = city.parts.webhook.deliveries

        def unpaused() -> bool:
            each._paused_until = 0.0
            return each.counts["dead"] == 2

        with structlog.testing.capture_logs() as logs:
            await until(unpaused, city)
        assert [id_ for id_, _ in receiver.told] == [f"evt_{second}_1"]
        assert receiver.tried.count(f"evt_{first}_0") == 3
        assert await pending(city) == 0
        reads = operator_reads(city.parts)
        page = await reads.dead_letters("default", None, 1)
        rest = await reads.dead_letters("default", page["next"], 1)
        letters = page["dead_letters"] + rest["dead_letters"]
        assert {letter["message_id"] for letter in letters} == {f"evt_{first}_0", f"evt_{second}_0"}
        assert {(letter["attempts"], letter["error"]) for letter in letters} == {(3, "it answered 500")}
        assert '"type":"trip.created"' in letters[0]["body"]
        told = str([letters, logs])
        assert "hidden" not in told, "the receiver's address may hold a token"
        assert SECRET not in told
        given_up = [entry for entry in logs if entry["event"] == "webhook message is given up"]
        assert sorted(entry["trip_id"] for entry in given_up) == sorted([first, second])
        # What is none of ours is put away at once.
        await city.redis("XADD", city.keys().events, "*", "event", "nonsense")
        await city.redis("XADD", city.keys().events, "*", "other", "1")
        await until(lambda: each.counts["dead"] == 4, city)


async def test_servers_share_the_work(
    city: City, redis_url: str, database_url: str, receiver: Receiver
) -> None:
    async with open_city(
        redis_url, database_url, zones=ZONES, webhook_url=[receiver.url], **FAST
    ) as other:
        for i in range(8):
            await a_ride(city, f"d{i}")
        await until(lambda: len(receiver.told) == 40, city, other)
        assert len({id_ for id_, _ in receiver.told}) == 40, "each is told once"
        shares = [each.counts["delivered"] for c in (city, other) for each in c.parts.webhook.deliveries]
        assert sum(shares) == 40
        assert min(shares) > 0


async def test_what_a_dead_server_has_begun_is_taken_over(
    city: City, redis_url: str, database_url: str, receiver: Receiver
) -> None:
    receiver.hold = asyncio.Event()
    async with open_city(
        redis_url, database_url, zones=ZONES, webhook_url=[receiver.url], **FAST
    ) as dead:
        trip = await city.trip()
        await until(lambda: receiver.tried, dead)
    receiver.hold.set()
    receiver.hold = None
    assert await pending(city) == 1
    await until(lambda: f"evt_{trip}_0" in dict(receiver.told), city)


async def test_one_receiver_that_hangs_delays_no_other(
    redis_url: str, database_url: str, receiver: Receiver
) -> None:
    async with (
        open_receiver() as hanging,
        open_city(
            redis_url, database_url, zones=ZONES, webhook_url=[hanging.url, receiver.url],
            webhook_secret=SECRET, webhook_timeout_s=30,
        ) as city,
    ):  # fmt: skip
        hanging.hold = asyncio.Event()
        for i in range(10):
            await a_ride(city, f"d{i}")
        await until(lambda: len(receiver.told) == 50, city)
        for i in range(20):
            await city.trip(zone="north", customer=f"n{i}")
        await asyncio.gather(*(look(city, zone=zone) for zone in ("default", "north")))
        elsewhere = await city.trip(zone="north")
        await until(lambda: len(receiver.told) == 71, city, zone="north")
        assert f"evt_{elsewhere}_0" in dict(receiver.told)
        assert hanging.told == []
        assert len(hanging.tried) <= 16, "calls under way are bounded"
        hanging.hold.set()


async def test_a_zone_in_trouble_keeps_no_other_from_beginning(
    city: City, redis_url: str, database_url: str, receiver: Receiver
) -> None:
    await city.redis("DEL", city.keys().unheard)
    await city.redis("SET", city.keys().unheard, "broken")
    async with open_city(
        redis_url, database_url, zones=ZONES, webhook_url=[receiver.url], **FAST
    ) as other:
        trip = await other.trip(zone="north")
        await until(lambda: f"evt_{trip}_0" in dict(receiver.told), other, zone="north")
        await city.redis("DEL", city.keys().unheard)
        trip = await other.trip()
        await look(other)  # it begins now
        later = await other.trip()
        await until(lambda: f"evt_{later}_0" in dict(receiver.told), other)
        assert trip != later


async def test_an_emptied_redis_loses_no_later_event(city: City, receiver: Receiver) -> None:
    await city.trip()
    await until(lambda: len(receiver.told) == 1, city)
    await city.redis("FLUSHDB")
    await city.parts.rehydration.warm("default")
    trip = await city.trip()
    await until(lambda: f"evt_{trip}_0" in dict(receiver.told), city)


async def test_a_redirect_is_a_failure(city: City, receiver: Receiver) -> None:
    receiver.status, receiver.headers = lambda _: 307, {"Location": "/elsewhere"}
    await city.trip()
    (each,) = city.parts.webhook.deliveries
    await until(lambda: each.counts["failed"], city)
    assert receiver.told == []


# --- offers


async def offers_of(city: City, *names: str) -> str:
    """Runs the first wave of a trip, to drivers who are present by calls alone unless named a socket."""
    for name in names:
        connection = name if name.startswith("socket") else HTTP
        await city.parts.presence.register(connection, driver(name), None, "")
        await city.available(name, is_online=True, location=PLACE)
    trip = await city.trip()
    await city.parts.offers.run_due("default")
    return trip


async def test_an_offer_is_told_where_no_socket_hears_it(city: City, receiver: Receiver) -> None:
    trip = await offers_of(city, "asleep-1", "socket-1", "asleep-2")
    await until(lambda: receiver.types.count("offer.made") == 2, city)
    await until(lambda: "trip.created" in receiver.types, city)
    offers = [message for _, message in receiver.told if message["type"] == "offer.made"]
    assert {offer["data"]["driver_id"] for offer in offers} == {"asleep-1", "asleep-2"}
    data = offers[0]["data"]
    assert (data["trip"]["id"], data["wave"], data["trip"]["current_status"]) == (trip, 1, "pending")
    assert 0 < data["expires_in_ms"] <= 60_000
    assert len({id_ for id_, _ in receiver.told}) == 3


async def test_an_offer_that_has_ended_is_not_told(city: City, receiver: Receiver) -> None:
    receiver.status = lambda _: 500
    await offers_of(city, "asleep-1")
    await until(lambda: any(id_.startswith("ofr_") for id_ in receiver.tried), city)
    receiver.status = lambda _: 200
    (each,) = city.parts.webhook.deliveries
    keys = city.keys()
    ((_, fields),) = await city.redis("XRANGE", keys.unheard, "-", "+")
    past = {**orjson.loads(fields[1]), "deadline_ms": 1}
    await city.redis("XADD", keys.unheard, "*", "event", orjson.dumps(past).decode())

    def unpaused() -> bool:
        each._paused_until = 0.0
        return each.counts["late"] == 1 and receiver.types.count("offer.made") == 1

    await until(unpaused, city)


async def test_without_a_webhook_nothing_is_queued(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url) as city:
        await offers_of(city, "asleep-1")
        assert await city.redis("EXISTS", city.keys().unheard) == 0
        assert city.parts.webhook.counts() == {"delivered": 0, "failed": 0, "late": 0, "dead": 0}


def test_the_group_of_a_receiver_is_named_by_its_address() -> None:
    """Another order of the receivers, or another server, means the same group."""
    calls = Calls("https://a.example/hook", SECRET, timeout_s=1, max_calls=1)
    scripts: Any = None
    names = {
        Deliveries(calls, scripts, timeout_s=1, first_rest_s=1, max_attempts=1)._group for _ in range(2)
    }
    assert len(names) == 1
    assert "example" not in calls.name
    assert calls.shown == "https://a.example"


async def test_the_receiver_of_the_page_takes_what_is_sent_and_nothing_else(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    page = (Path(__file__).parents[2] / "docs" / "integrate.md").read_text()
    shown = page.split("<!-- run webhook -->\n```python\n")[1].split("```")[0]
    taken: list[Any] = []
    seen: set[str] = set()

    async def is_new(id_: str) -> bool:
        return not (id_ in seen or seen.add(id_))

    async def take(message: Any) -> None:
        taken.append(message)

    made: dict[str, Any] = {"is_new": is_new, "take": take}
    exec(shown, made)
    application = web.Application()
    application.router.add_post("/hook", made["hook"])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    async with open_city(redis_url, database_url, webhook_url=[url], **FAST) as city:
        await city.trip()
        await until(lambda: taken, city)
        async with aiohttp.ClientSession() as session, session.post(url, json={}) as forged:
            assert forged.status == 401
    assert [message["type"] for message in taken] == ["trip.created"]
    await runner.cleanup()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"webhook_url": "https://a.example"}, "DISPATCHER_WEBHOOK_SECRET must be whsec_"),
        ({"webhook_url": "https://a.example", "webhook_secret": "whsec_c2hvcnQ="}, "24 to 64 bytes"),
        ({"webhook_url": "https://a.example", "webhook_secret": SECRET[6:]}, "must be whsec_"),
        ({"webhook_url": "ftp://a.example", "webhook_secret": SECRET}, "DISPATCHER_WEBHOOK_URL"),
        ({"webhook_url": "https://", "webhook_secret": SECRET}, "DISPATCHER_WEBHOOK_URL"),
        ({"webhook_url": "https://:8443/hook", "webhook_secret": SECRET}, "DISPATCHER_WEBHOOK_URL"),
        ({"webhook_url": "https://a.example:0x1", "webhook_secret": SECRET}, "DISPATCHER_WEBHOOK_URL"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(says)) as refused:
        load_settings(**wrong)
    assert SECRET not in str(refused.value)
