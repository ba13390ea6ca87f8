"""The network between servers and an engine: slow, deaf in one direction, half closed, cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from tests.faults.kinds.fault import Fault
from tests.faults.proxy import Proxy
from tests.faults.stage import Stage


async def _slow_down(proxy: Proxy, random: Random) -> None:
    """Each piece of what goes to and from {} takes longer than usual."""
    proxy.delay_s = random.uniform(0.01, 0.15)
    try:
        await asyncio.sleep(random.uniform(0.3, 2.0))
    finally:
        proxy.delay_s = 0.0


async def _swallow_answers(proxy: Proxy, random: Random) -> None:
    """{} hears and does everything, and its answers are lost."""
    proxy.swallow_answers()
    try:
        await asyncio.sleep(random.uniform(0.1, 2.0))
    finally:
        proxy.stop_swallowing()


async def _half_close(proxy: Proxy, random: Random) -> None:
    """Connections to {} say that nothing more will come, and stay open for what servers send."""
    proxy.half_close()
    await asyncio.sleep(random.uniform(0.1, 0.5))


async def _cut(proxy: Proxy, random: Random) -> None:
    """{} cannot be reached for a while."""
    target = proxy.target
    assert target is not None
    proxy.cut()
    try:
        await asyncio.sleep(random.uniform(0.2, 2.0))
    finally:
        proxy.point(target)


def _of(
    engine: str, what: Callable[[Proxy, Random], Awaitable[None]], proxy: Callable[[Stage], Proxy]
) -> Fault:
    async def fault(stage: Stage, random: Random) -> None:
        await what(proxy(stage), random)

    fault.__name__ = f"{what.__name__.lstrip('_')}_of_{engine.lower()}"
    fault.__doc__ = (what.__doc__ or "").format(engine)
    return fault


_WHAT = (_slow_down, _swallow_answers, _half_close, _cut)
OF_REDIS = tuple(_of("Redis", what, lambda stage: stage.proxy) for what in _WHAT)
OF_POSTGRES = tuple(_of("Postgres", what, lambda stage: stage.postgres_proxy) for what in _WHAT)
swallow_answers_of_postgres = OF_POSTGRES[1]
ALL = (*OF_REDIS, *OF_POSTGRES)
