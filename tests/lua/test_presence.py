"""Presence: who is swept, and who gets an entry that ends."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.live.presence import Swept, Touch, TouchResult
from tests.harness.lua_zone import Zone

GRACE_MS, LIFE_MS = 1_000, 60_000


async def swept(zone: Zone, grace_ms: int) -> list[str]:
    epoch = await zone.redis.get(zone.keys.epoch)
    return (await sweep(zone, epoch, grace_ms)).addresses


async def sweep(zone: Zone, epoch: str, grace_ms: int = 0, latest_ms: int | None = None) -> Swept:
    return await zone.presence.sweep_absent(
        zone.keys, grace_ms=grace_ms, epoch=epoch, life_ms=LIFE_MS,
        latest_ms=zone.now_ms if latest_ms is None else latest_ms,
    )  # fmt: skip


async def test_who_has_no_presence_gets_one_that_ends(zone: Zone) -> None:
    present, keys = zone.presence, zone.keys
    await zone.redis.zadd(keys.present, {"driver:here": zone.now_ms + 5, "driver:gone": 1})
    users = ["driver:here", "driver:gone", "driver:new"]
    assert await present.expect_present(keys, users, life_ms=LIFE_MS) == 1
    assert await present.expect_present(keys, users, life_ms=LIFE_MS) == 0
    ends = {user: await zone.redis.zscore(keys.present, user) for user in users}
    assert ends == {
        "driver:here": zone.now_ms + 5, "driver:gone": 1, "driver:new": zone.now_ms + LIFE_MS,
    }  # fmt: skip
    await zone.advance(LIFE_MS + GRACE_MS)
    assert "driver:new" in await swept(zone, GRACE_MS)


async def test_one_server_looks_at_a_time(zone: Zone) -> None:
    assert await zone.presence.begin_look(zone.keys, "n1", every_ms=60_000)
    assert not await zone.presence.begin_look(zone.keys, "n2", every_ms=60_000)


@pytest.mark.parametrize(
    ("known", "version", "result"),
    [
        ({}, 3, TouchResult.UNKNOWN),
        ({"zone": "z", "version": 3}, 3, TouchResult.HERE),
        ({"zone": "z", "version": 4}, 3, TouchResult.HERE),
        ({"zone": "south", "version": 4}, 3, TouchResult.ELSEWHERE),
        ({"zone": "south", "version": 0}, -1, TouchResult.ELSEWHERE),
        ({"zone": "south", "version": 2}, 3, TouchResult.UNKNOWN),
    ],
)
async def test_a_driver_is_present_where_the_newest_row_says(
    zone: Zone, known: dict[str, Any], version: int, result: TouchResult
) -> None:
    if known:
        await zone.driver(**known)
    touch = Touch("driver:d1", "c1", "{}", LIFE_MS, version)
    assert await zone.presence.touch_presence(zone.keys, [touch]) == [result]
    is_present = await zone.redis.zscore(zone.keys.present, "driver:d1") is not None
    assert is_present == (result is not TouchResult.ELSEWHERE)


async def test_who_was_handed_out_is_not_present_however_short_the_grace_is(zone: Zone) -> None:
    await zone.redis.zadd(zone.keys.present, {"driver:d1": 1})
    for grace_ms in (0, GRACE_MS):
        assert await swept(zone, grace_ms) == ["driver:d1"]
        assert await zone.redis.zscore(zone.keys.present, "driver:d1") <= zone.now_ms
        await zone.advance(GRACE_MS)
    assert await zone.presence.forget_absent(zone.keys, "driver:d1")


async def test_nobody_is_handed_out_in_another_epoch(zone: Zone) -> None:
    await zone.redis.zadd(zone.keys.present, {"driver:d1": 1})
    before = await zone.dump()
    epoch = await zone.redis.get(zone.keys.epoch)
    for other in ("", "1 0 another"):
        assert await sweep(zone, other) == (epoch, zone.now_ms, [])
    await zone.redis.delete(zone.keys.epoch)
    for cold in ("", epoch):
        assert await sweep(zone, cold) == ("", zone.now_ms, [])
    await zone.redis.set(zone.keys.epoch, epoch)
    assert await zone.dump() == before


async def test_nobody_is_handed_out_by_a_clock_that_has_leapt(zone: Zone) -> None:
    await zone.redis.zadd(zone.keys.present, {"driver:d1": zone.now_ms + LIFE_MS})
    epoch, latest_ms = await zone.redis.get(zone.keys.epoch), zone.now_ms + 1_000
    await zone.advance(3_600_000)
    assert await sweep(zone, epoch, latest_ms=latest_ms) == (epoch, zone.now_ms, [])
    assert await swept(zone, GRACE_MS) == ["driver:d1"]


async def test_who_is_gone_is_handed_out_after_the_clock_stepped_back(zone: Zone) -> None:
    await zone.redis.zadd(zone.keys.present, {"driver:d1": zone.now_ms + LIFE_MS})
    await zone.advance(-3_600_000)
    assert await swept(zone, GRACE_MS) == []
    await zone.advance(LIFE_MS + GRACE_MS)
    assert await swept(zone, GRACE_MS) == ["driver:d1"]
