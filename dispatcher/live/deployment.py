"""The pipeline of a deployment of Redis: one node, a primary that Sentinels name, or a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from dispatcher.live.address import Kind, parse_address
from dispatcher.live.client import connect
from dispatcher.live.cluster import ClusterPipeline
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.topology import Topology


@contextlib.asynccontextmanager
async def open_pipeline(url: str) -> AsyncIterator[Pipeline]:
    """Connects to what `url` leads to, and lets go of it once everything was sent.

    Raises ValueError, StoreUnavailable, redis.exceptions.RedisError.
    """
    address = parse_address(url)
    async with contextlib.AsyncExitStack() as stack:
        if address.kind is Kind.CLUSTER:
            topology = Topology(address)
            stack.push_async_callback(topology.close)
            await topology.refresh()
            pipeline: Pipeline = ClusterPipeline(topology)
        else:
            redis = connect(url)
            stack.push_async_callback(redis.aclose)
            pipeline = Pipeline(redis)
        stack.push_async_callback(pipeline.close)
        await pipeline.load_scripts()
        yield pipeline
