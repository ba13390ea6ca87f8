"""The scripts and the pipeline on a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from dispatcher.core.errors import ReplyLost, StoreUnavailable
from dispatcher.embedded.packages import valkey_program
from dispatcher.live.client import connect
from dispatcher.live.keys import keys_of
from dispatcher.live.limits import LimitScripts
from dispatcher.live.pipeline import Pipeline
from dispatcher.resources import LUA_DIR
from tests.harness.lua_zone import limit
from tests.lua.walk import Walk

SCRIPTS = sorted(path.stem for path in LUA_DIR.glob("*.lua"))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """A cluster of one node that holds every slot: it refuses what a larger one would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        bus = probe.getsockname()[1]
    command = [
        str(valkey_program()), "--bind", "127.0.0.1", "--port", str(port),
        "--cluster-enabled", "yes", "--cluster-port", str(bus), "--dir", str(tmp_path),
        "--save", "", "--maxmemory-policy", "noeviction",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield await _form_cluster(port), process
    finally:
        process.kill()
        process.wait(10)


async def _form_cluster(port: int) -> str:
    async with redis.asyncio.Redis(port=port, decode_responses=True) as node, asyncio.timeout(20):
        while True:
            try:
                await node.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
                break
            except redis.exceptions.ConnectionError:
                await asyncio.sleep(0.02)
        while "cluster_state:ok" not in await node.execute_command("CLUSTER", "INFO"):
            await asyncio.sleep(0.02)
    return f"redis://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def _client_of(url: str) -> AsyncIterator[Any]:
    client = connect(url, cluster=True)
    # redis-py forgets these, connected, when it has learned the cluster's slots from them.
    first = list(client.nodes_manager.startup_nodes.values())
    try:
        yield client
    finally:
        await client.aclose()
        for node in first:
            await node.disconnect()


async def test_a_cluster_that_went_away(cluster: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, process = cluster
    async with _client_of(url) as client:
        pipeline = Pipeline(client)
        assert (await LimitScripts(pipeline).check_limit(keys_of("z"), [limit(5)])).is_admitted
        process.kill()
        process.wait()
        calls = (LimitScripts(pipeline).check_limit(keys_of(z), [limit(5)]) for z in ("a", "b", "c"))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {ReplyLost}
        with pytest.raises(StoreUnavailable):
            await pipeline.run_id(keys_of("z").epoch)


async def test_every_script_runs_in_a_cluster(cluster: tuple[str, subprocess.Popen[bytes]]) -> None:
    """Every key is declared and of one slot: a cluster refuses a script that breaks that."""
    async with _client_of(cluster[0]) as client:
        pipeline = Pipeline(client)
        ran: set[str] = set()
        run = pipeline.run
        pipeline.run = lambda script, *rest: ran.add(script) or run(script, *rest)  # type: ignore[method-assign, func-returns-value]
        names = ("a", "b", "c-1")
        await asyncio.gather(*(Walk(pipeline, keys_of(name)).take() for name in names))
        assert sorted(ran) == SCRIPTS
        assert len(await pipeline.run_id(keys_of("a").epoch)) == 40
        await client.script_flush()
        limits = LimitScripts(pipeline)
        admissions = await asyncio.gather(
            *(limits.check_limit(keys_of(f"z{i}"), [limit(5)]) for i in range(50))
        )
        assert all(admission.is_admitted for admission in admissions)
        await pipeline.close()
