"""The client and the app of docs/driver_app.py against a real server, which is also killed and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.client import (
    AppClient,
    CustomerClient,
    DriverChanged,
    DriverClient,
    DriverLocation,
    Intent,
    Offer,
    OfferWithdrawn,
    TripChanged,
    Welcome,
    problems,
)
from dispatcher.client.driver import action_intent
from tests.harness.servers import JWT_SECRET, Serve, Server, make_token

ROOT = Path(__file__).parents[2]
PLACE = (40.7559, -73.9864)
WIDE = {"DISPATCHER_LIMIT_GENERAL": "10000/60", "DISPATCHER_DRAIN_S": "0.2"}


@contextlib.asynccontextmanager
async def apps(server: Server, *drivers: str) -> AsyncIterator[tuple[Any, ...]]:
    """A rider's client, and one of each driver, who are online and connected."""
    async with contextlib.AsyncExitStack() as stack:
        token = token_of_the_page("r1", "customer")
        rider = await stack.enter_async_context(CustomerClient(server.url, token))
        made = [
            await stack.enter_async_context(DriverClient(server.url, make_token(name, "driver")))
            for name in drivers
        ]
        for driver in made:
            answer = await driver.set_availability(is_online=True, location=PLACE)
            assert answer.keeps_offers_away == ()
            await driver.connected()
        await rider.connected()
        yield (rider, *made)


def token_of_the_page(user_id: str, role: str) -> str:
    """A token as docs/integrate.md makes it."""
    page = (ROOT / "docs" / "integrate.md").read_text()
    made: dict[str, Any] = {}
    exec(page.split("<!-- run -->\n```python\n")[1].split("```")[0], made)
    return str(made["token_for"](user_id, role, JWT_SECRET))


async def first(events: AsyncIterator[Any], kind: type, within_s: float = 20.0) -> Any:
    """The next event of a kind."""
    async with asyncio.timeout(within_s):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(kind)


async def test_a_ride_from_both_sides(serve: Serve) -> None:
    server = await serve(env=WIDE)
    async with apps(server, "d1", "d2") as (rider, d1, d2):
        heard, offers, others = rider.events(), d1.events(), d2.events()
        trip = await rider.create(PLACE, dropoff=(40.76, -73.98), vehicle_type="car")
        assert (trip.current_status, list(rider.trips)) == ("pending", [trip.id])
        offer = await first(offers, Offer)
        assert (offer.trip.id, offer.wave) == (trip.id, 1)
        await first(others, Offer)
        assert [near.id for near in await d2.nearby()] == [trip.id]
        intent = action_intent("accept", trip.id, version=0)
        taken = (await d1.change(intent))["trip"]
        assert (await d1.change(intent))["trip"] == taken, "one key, one answer"
        assert (await first(heard, TripChanged)).trip.driver_id == "d1"
        assert (await first(others, OfferWithdrawn)).trip_request_id == trip.id
        with pytest.raises(problems.TripAlreadyAssigned):
            await d2.accept(trip.id)
        await d1.report(40.7560, -73.9860)
        assert (await first(heard, DriverLocation)).driver_id == "d1"
        with pytest.raises(problems.VersionConflict) as conflict:
            await d1.arrive(trip.id, version=7)
        assert conflict.value.fields["version"] == 1
        state = await d1.state()
        assert (state.trip.id if state.trip else None, state.keeps_offers_away) == (
            trip.id, ("active_trip",)
        )  # fmt: skip
        for step in (d1.arrive, d1.start, d1.complete):
            await step(trip.id)
        assert d1.trip is None
        while trip.id in rider.trips:
            await first(heard, TripChanged)
        assert (await rider.ride(trip.id)).current_status == "completed"
        assert (await rider.rides()).trips == ()
        async with AppClient(server.url, make_token("op", "admin")) as operator:
            await operator.change(Intent("/api/admin/driver/offline", {"driver_id": "d1"}))
        changed = await first(offers, DriverChanged)
        assert (changed.driver.user_id, changed.driver.is_online) == ("d1", False)
        assert "offline" in (await d1.state()).keeps_offers_away
        await d2.set_availability(is_online=False)  # else a wave would wait for their answer
    await app_of_the_page(server)


async def app_of_the_page(server: Server) -> None:
    """docs/driver_app.py takes one trip after the other."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "docs" / "driver_app.py"), server.url, make_token("d3", "driver"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with CustomerClient(server.url, make_token("r2", "customer")) as rider:
            for _ in range(2):
                trip = await rider.create(PLACE)
                async with asyncio.timeout(30):
                    said = [(await process.stdout.readline()).decode().split() for _ in range(4)]
                assert said == [
                    [status, trip.id] for status in ("accepted", "arrived", "ongoing", "completed")
                ]
    finally:
        process.terminate()
        await process.communicate()


async def test_a_server_that_comes_back_finds_its_apps_again(serve: Serve) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**WIDE, "DISPATCHER_PORT": port}
    server = await serve(env=env)
    async with apps(server, "d1") as (rider, d1):
        events = d1.events()
        trip = await rider.create(PLACE)
        await first(events, Offer)
        await d1.accept(trip.id)
        server.kill9()
        # What is wanted while the server is away is done once it is back, once.
        arriving = asyncio.create_task(d1.arrive(trip.id))
        cancelling = asyncio.create_task(rider.create(PLACE, trip_request_id="own-1"))
        await serve(env=env)
        assert (await arriving).current_status == "arrived"
        assert (await cancelling).id == "default_own-1"
        welcome = await first(events, Welcome)
        assert welcome.snapshot.trip.id == trip.id
        assert d1.trip.current_status == "arrived"
