"""A hash that no server has written: one call is refused, the others are answered, and it is mended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
import redis.asyncio

from dispatcher.live.keys import keys_of
from tests.harness.services import City, rider
from tests.service.test_corrupt_values import Scene, city

__all__ = ["city"]  # the fixture

KEYS = keys_of("default")
CORRUPT: dict[str, Mapping[bytes | str, bytes | str]] = {
    "no text": {"customer_id": b"\xff\xfe"},
    "an empty id": {"id": ""},
    "an empty time": {"updated_at": ""},
    "an empty version": {"version": ""},
    "an empty status": {"current_status": "", "availability_status": ""},
    "a name that is no text": {b"\xff": "x"},
    "10,000 fields": {f"f{n}": "1" for n in range(10_000)},
    "a long name": {"f" * 1_000_000: "1"},
    "a long value": {"later": "1" * 1_000_000},
}


async def _others_are_answered(city: City, customer: str) -> None:
    for _ in range(10):
        trip = await city.trip(customer=customer)
        assert (await city.act(rider(customer), "cancel", trip)).status == 200


@pytest.mark.parametrize("fields", CORRUPT.values(), ids=CORRUPT)
@pytest.mark.parametrize("which", ["taken", "offered", "declined", "driver"])
async def test_a_corrupt_hash_is_nobody_else_s_matter(
    city: City, redis_url: str, which: str, fields: Mapping[bytes | str, bytes | str]
) -> None:
    scene = Scene(city)
    await scene.set()
    is_driver = which == "driver"
    name = KEYS.driver(scene.holder) if is_driver else KEYS.trip(getattr(scene, which))
    if is_driver:
        fields = {"vehicle_type" if n == "customer_id" else n: v for n, v in fields.items()}
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.hset(name, mapping=dict(fields))
    await asyncio.gather(scene.go_on(), _others_are_answered(city, f"other-{scene.rider}"))
    await scene.go_on()
    await scene.ends_well()
    assert await city.double_assignments() == 0
