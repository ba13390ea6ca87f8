"""The webhook as an operator sets it: a server with a receiver, and a sleeping app that hears of its offer."""

from __future__ import annotations

import asyncio

import aiohttp

from dispatcher.client import CustomerClient, DriverClient
from dispatcher.web.operator_answers import DeadLetters
from tests.harness.servers import Serve, make_token
from tests.service.test_webhook import PLACE, SECRET, Receiver, open_receiver


async def told(receiver: Receiver, kind: str) -> None:
    async with asyncio.timeout(20):
        while kind not in receiver.types:
            await asyncio.sleep(0.05)


async def test_a_sleeping_app_hears_of_its_offer(serve: Serve) -> None:
    async with open_receiver() as receiver:
        server = await serve(
            env={
                "DISPATCHER_WEBHOOK_URL": receiver.url, "DISPATCHER_WEBHOOK_SECRET": SECRET,
                "DISPATCHER_WEBHOOK_ATTEMPTS": "1", "DISPATCHER_DRAIN_S": "0.2",
            }
        )  # fmt: skip
        async with (
            DriverClient(server.url, make_token("d1", "driver")) as d1,
            CustomerClient(server.url, make_token("r1", "customer")) as rider,
        ):
            await d1.set_availability(is_online=True, location=PLACE)
            trip = await rider.create(PLACE)
            await told(receiver, "offer.made")
            (offer,) = [m["data"] for _, m in receiver.told if m["type"] == "offer.made"]
            assert (offer["trip"]["id"], offer["driver_id"]) == (trip.id, "d1")
            await d1.accept(offer["trip"]["id"])  # the push has woken the app
            await told(receiver, "trip.accepted")
            receiver.status = lambda _: 500
            await rider.cancel(trip.id)
            path = "/api/admin/zones/default/dead-letters"
            admin = {"Authorization": f"Bearer {make_token('a1', 'admin')}"}
            async with aiohttp.ClientSession(server.url, headers=admin) as session:
                async with asyncio.timeout(20):
                    while not (letters := (await (await session.get(path)).json())["dead_letters"]):
                        await asyncio.sleep(0.05)
                assert [letter["type"] for letter in letters] == ["trip.cancelled"]
                DeadLetters.model_validate_json(await (await session.get(path)).read())
                metrics = await (await session.get("/metrics")).text()
            assert "dispatcher_webhook_deliveries_total" in metrics
        async with asyncio.timeout(20):
            while "webhook message is given up" not in (logs := server.log.read_text()):
                await asyncio.sleep(0.05)
        assert SECRET not in logs
        assert "token=hidden" not in logs
