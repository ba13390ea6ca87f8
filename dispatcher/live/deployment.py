"""The pipeline of a deployment of Redis: one node, a primary that Sentinels name, or a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from redis.exceptions import RedisError

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.address import Kind, parse_address
from dispatcher.live.client import connect
from dispatcher.live.cluster import ClusterPipeline
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.protocol import REPLY_TIMEOUT_S
from dispatcher.live.topology import Topology


@contextlib.asynccontextmanager
async def open_pipeline(
    url: str, *, timeout_s: float = REPLY_TIMEOUT_S, breaks: bool = False
) -> AsyncIterator[Pipeline]:
    """Connects to what `url` leads to, and lets go of it once everything was sent.

    A node that is silent for `timeout_s` is away; with `breaks`, it is left alone then, or from the
    start.

    Raises ValueError, StoreUnavailable, redis.exceptions.RedisError.
    """
    address = parse_address(url)
    async with contextlib.AsyncExitStack() as stack:
        if address.kind is Kind.CLUSTER:
            topology = Topology(address)
            stack.push_async_callback(topology.close)
            await topology.refresh()
            pipeline: Pipeline = ClusterPipeline(topology, timeout_s=timeout_s, breaks=breaks)
        else:
            redis = connect(url)
            stack.push_async_callback(redis.aclose)
            pipeline = Pipeline(redis, timeout_s=timeout_s, breaks=breaks)
        stack.push_async_callback(pipeline.close)
        try:
            await pipeline.load_scripts()
        except (StoreUnavailable, RedisError, OSError, TimeoutError) as error:
            if not breaks:
                raise
            pipeline.leave_alone(
                f"not reached: {error}"
            )  # whatever lacks a script later is given it then
        yield pipeline
