"""Rate limiters to compare: what one check costs, and whether one ever admits too many."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from time import perf_counter

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import Redis

from dispatcher.core.limits import Limit, Rate
from dispatcher.live.client import connect
from dispatcher.live.keys import keys_of
from dispatcher.live.limits import LimitScripts
from dispatcher.live.pipeline import Pipeline
from harness.http_load import Sample

Admission = tuple[float, float]  # times of request and answer by the client's clock, in seconds
Check = Callable[[str], Awaitable[bool]]


class Limiter:
    """One rate limiter; the two loads are the same for all of them."""

    async def open(self, redis_url: str, limit: int, window_s: int) -> None:
        raise NotImplementedError

    async def check(self, subject: str) -> bool:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def cost(
        self, redis_url: str, limit: int, window_s: int, tasks: int, subjects: list[str],
        seconds: float,
    ) -> Sample:  # fmt: skip
        """Load of `tasks` callers, each one check after the other, over many subjects."""
        await self.open(redis_url, limit, window_s)
        sample = Sample()
        started = perf_counter()
        deadline = started + seconds

        async def caller(number: int) -> None:
            turn = number
            while (before := perf_counter()) < deadline:
                admitted = await self.check(subjects[turn % len(subjects)])
                turn += tasks
                sample.latencies.append(perf_counter() - before)
                sample.codes["admitted" if admitted else "refused"] += 1

        await asyncio.gather(*map(caller, range(tasks)))
        sample.elapsed_s = perf_counter() - started
        await self.close()
        return sample

    async def crowd(
        self, redis_url: str, limit: int, window_s: int, tasks: int, subject: str, seconds: float
    ) -> tuple[list[Admission], int]:
        """Many clients against one subject's limit. Returns the admissions and all calls."""
        await self.open(redis_url, limit, window_s)
        admissions: list[Admission] = []
        deadline = perf_counter() + seconds
        calls = 0

        async def client() -> None:
            nonlocal calls
            while (before := perf_counter()) < deadline:
                calls += 1
                if await self.check(subject):
                    admissions.append((before, perf_counter()))
                await asyncio.sleep(0.005)

        await asyncio.gather(*(client() for _ in range(tasks)))
        await self.close()
        return admissions, calls


class Ping(Limiter):
    """No limiter: what a round trip of the client library costs."""

    async def open(self, redis_url: str, limit: int, window_s: int) -> None:
        self.redis = Redis.from_url(redis_url)

    async def check(self, subject: str) -> bool:
        await self.redis.ping()
        return True

    async def close(self) -> None:
        await self.redis.aclose()


class LimitsPackage(Limiter):
    """The moving window of the `limits` package, on the same client library."""

    async def open(self, redis_url: str, limit: int, window_s: int) -> None:
        self.storage = RedisStorage(f"async+{redis_url}", implementation="redispy")
        self.limiter = MovingWindowRateLimiter(self.storage)
        self.item = RateLimitItemPerSecond(limit, window_s)

    async def check(self, subject: str) -> bool:
        return await self.limiter.hit(self.item, subject)

    async def close(self) -> None:
        await self.storage.bridge.storage.aclose()


class DispatcherLimiter(Limiter):
    """The dispatcher's own check, through its pipeline and its script."""

    async def open(self, redis_url: str, limit: int, window_s: int) -> None:
        self.redis = connect(redis_url)
        self.pipeline = Pipeline(self.redis)
        await self.pipeline.load_scripts()
        self.limits = LimitScripts(self.pipeline)
        self.rate = Rate(limit, window_s)
        self.keys = keys_of("bench")
        await self.pipeline.command("SET", self.keys.epoch, "1 0 bench")

    async def check(self, subject: str) -> bool:
        limit = Limit("general", subject, self.rate)
        return (await self.limits.check_limit(self.keys, [limit])).is_admitted

    async def close(self) -> None:
        await self.pipeline.close()
        await self.redis.aclose()


def max_in_window(admissions: list[Admission], window_s: float) -> int:
    """The most admissions that certainly lay in one window, whatever the delays on the way.

    A decision is made between request and answer. All checks that were requested after some moment and
    answered less than a window later lie in one window, so more of them than the limit prove an error.
    """
    worst = 0
    requested = sorted(request for request, _ in admissions)
    for request in requested:
        answers = sorted(answer for other, answer in admissions if other >= request)
        worst = max(worst, bisect_left(answers, request + window_s))
    return worst
