"""A node that is away is left alone, and asked again once a write to it has gone through."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.live.breaker import Breaker


class _Node:
    """Something to probe: fails, hangs or answers."""

    def __init__(self) -> None:
        self.ill: BaseException | None = ConnectionError("refused")
        self.hangs = False
        self.probes = 0
        self.at_once = 0
        self.most_at_once = 0

    async def probe(self) -> None:
        self.probes += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hangs:
                await asyncio.Event().wait()
            if self.ill is not None:
                raise self.ill
        finally:
            self.at_once -= 1


async def _probed(node: _Node, times: int) -> None:
    async with asyncio.timeout(20):
        while node.probes < times:
            await asyncio.sleep(0.01)


async def test_it_closes_once_a_probe_succeeds() -> None:
    node = _Node()
    breaker = Breaker(node.probe, timeout_s=0.05)
    assert not breaker.is_open
    for _ in range(100):
        breaker.trip("silent")
    assert (breaker.is_open, breaker.reason, breaker.opened) == (True, "silent", 1)
    await _probed(node, 2)
    assert (breaker.is_open, breaker.reason) == (True, "refused")
    node.hangs = True
    await _probed(node, 4)
    assert breaker.is_open, "a node that hangs is not there"
    node.hangs, node.ill = False, None
    async with asyncio.timeout(20):
        while breaker.is_open:
            await asyncio.sleep(0.01)
    assert node.most_at_once == 1
    breaker.trip("again")
    assert breaker.opened == 2
    await breaker.close()


async def test_a_breaker_that_is_closed_probes_no_more() -> None:
    node = _Node()
    breaker = Breaker(node.probe, timeout_s=0.05)
    breaker.trip("gone")
    await _probed(node, 1)
    await breaker.close()
    probes = node.probes
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.Event().wait()
    assert node.probes == probes


async def test_one_that_is_closed_probes_no_more() -> None:
    """As a node of a cluster that has a successor: what it was asked last fails afterwards."""

    async def probe() -> None:
        raise AssertionError("probed")

    breaker = Breaker(probe, timeout_s=1)
    await breaker.close()
    breaker.trip("redis")
    assert not breaker.is_open
    await breaker.close()
