"""The lower bound of storing positions: redis-py with a pipeline and nothing else."""

from __future__ import annotations

from random import Random
from time import perf_counter

from redis.asyncio import Redis

from harness.http_load import Sample

KEY = "bench:geo"


class RawGeoadd:
    async def run(self, url: str, pipeline: int, seconds: float) -> Sample:
        """One connection, one pipeline after the other. Latency is a pipeline's, for each point."""
        random = Random(17)
        points = [
            (random.uniform(-74.0, -73.7), random.uniform(40.6, 40.9), f"d-{n}") for n in range(1_000)
        ]
        sample = Sample()
        client = Redis.from_url(url)
        started = perf_counter()
        sent = 0
        while (before := perf_counter()) < started + seconds:
            pipe = client.pipeline(transaction=False)
            for n in range(sent, sent + pipeline):
                lng, lat, name = points[n % 1_000]
                pipe.execute_command("GEOADD", KEY, lng, lat, name)
            await pipe.execute()
            sent += pipeline
            sample.latencies.extend([perf_counter() - before] * pipeline)
            sample.codes["OK"] += pipeline
        sample.elapsed_s = perf_counter() - started
        await client.delete(KEY)
        await client.aclose()
        return sample
