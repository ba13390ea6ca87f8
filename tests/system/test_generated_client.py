"""A client that a generator makes of the API's description works against a server."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.harness.servers import Serve, make_token


def _generate(description: Path, package: Path) -> None:
    configuration = description.with_name("generator.yaml")
    configuration.write_text("post_hooks: []\n")  # nobody reads it
    subprocess.run(
        [
            str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--meta", "none",
            "--fail-on-warning", "--path", str(description), "--output-path", str(package),
            "--config", str(configuration),
        ],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


async def test_a_generated_client_accepts_a_trip(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(env={"DISPATCHER_DRAIN_S": "0"})
    description = tmp_path / "openapi.json"
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server.url}/openapi.json") as response,
    ):
        description.write_bytes(await response.read())
    await asyncio.to_thread(_generate, description, tmp_path / "generated_dispatcher")
    monkeypatch.syspath_prepend(tmp_path)
    generated = importlib.import_module("generated_dispatcher")
    models = importlib.import_module("generated_dispatcher.models")

    def operation(name: str) -> object:
        return importlib.import_module(f"generated_dispatcher.api.{name}").asyncio_detailed

    def client(user: str, role: str) -> object:
        return generated.AuthenticatedClient(base_url=server.url, token=make_token(user, role))

    async with client("d1", "driver") as driver, client("c1", "customer") as customer:
        online = models.Availability(
            is_online=True,
            availability_status=models.AvailabilityAvailabilityStatusType0.AVAILABLE,
            location=models.Place(lat=40.7559, lng=-73.9864),
        )
        answer = await operation("driver.availability")(client=driver, body=online)
        assert answer.parsed.driver.is_online
        assert answer.parsed.driver.updated_at.tzinfo is not None
        new = models.NewTrip(pickup=models.Place(lat=40.7549, lng=-73.984))
        trip = (await operation("customer.create")(client=customer, body=new)).parsed.trip
        assert trip.current_status is models.Status.PENDING
        accept = models.TripAction(
            action=models.TripActionAction.ACCEPT, trip_request_id=trip.id, version=trip.version
        )
        for replayed in (False, True):
            answer = await operation("driver.trip_action")(
                client=driver, body=accept, idempotency_key="accept-1"
            )
            assert isinstance(answer.parsed, models.TripStepTaken)
            assert answer.parsed.trip.driver_id == "d1"
            assert ("X-Idempotent-Replay" in answer.headers) is replayed
        seen = (await operation("customer.customer_trip")(client=customer, id=trip.id)).parsed.trip
        assert seen.current_status is models.Status.ACCEPTED
        refused = (await operation("driver.trip_action")(client=driver, body=accept)).parsed
        assert isinstance(refused, models.Problem)
        assert refused.response_code == models.ProblemResponseCode.TRIP_ALREADY_ASSIGNED
        assert refused.version == 1
    assert await server.stop() == 0
