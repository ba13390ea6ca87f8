"""The scripts and the pipeline on a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import signal
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


@pytest.fixture
async def two_nodes(tmp_path: Path) -> AsyncIterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A cluster of two nodes with half of the slots each, the second half on the second one."""
    ports = [_free_port(), _free_port()]
    processes = [_start_node(tmp_path / str(port), port) for port in ports]
    try:
        yield await _join(ports), processes
    finally:
        for process in processes:
            process.kill()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_node(directory: Path, port: int) -> subprocess.Popen[bytes]:
    directory.mkdir()
    command = [
        str(valkey_program()), "--bind", "127.0.0.1", "--port", str(port),
        "--cluster-enabled", "yes", "--cluster-port", str(_free_port()), "--dir", str(directory),
        "--cluster-require-full-coverage", "no", "--cluster-node-timeout", "60000",
        "--save", "", "--maxmemory-policy", "noeviction",
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def _join(ports: list[int]) -> str:
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(30):
        nodes = [
            await stack.enter_async_context(redis.asyncio.Redis(port=port, decode_responses=True))
            for port in ports
        ]
        for node, slots in zip(nodes, (("0", "8191"), ("8192", "16383")), strict=True):
            while True:
                try:
                    await node.execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
                    break
                except redis.exceptions.ConnectionError:
                    await asyncio.sleep(0.02)
        # Nodes of one epoch would have to agree on another one first.
        await nodes[0].execute_command("CLUSTER", "SET-CONFIG-EPOCH", "1")
        bus = await nodes[1].config_get("cluster-port")
        await nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", ports[1], bus["cluster-port"])
        for node in nodes:
            while "cluster_slots_assigned:16384" not in await node.execute_command("CLUSTER", "INFO"):
                await asyncio.sleep(0.02)
            while "cluster_state:ok" not in await node.execute_command("CLUSTER", "INFO"):
                await asyncio.sleep(0.02)
    return f"redis://127.0.0.1:{ports[0]}"


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_node_that_fails_stops_no_calls_of_another_one(
    two_nodes: tuple[str, list[subprocess.Popen[bytes]]], fault: signal.Signals
) -> None:
    """Neither those of the same turn nor, while it hangs, those of later turns."""
    url, (_, second) = two_nodes
    async with _client_of(url) as client:
        pipeline = Pipeline(client)
        limits = LimitScripts(pipeline)
        zones = [f"z{number}" for number in range(40)]
        on_second = {z for z in zones if client.keyslot(keys_of(z).epoch) > 8191}
        healthy = [z for z in zones if z not in on_second]
        assert on_second
        assert healthy
        await asyncio.gather(*(limits.check_limit(keys_of(z), [limit(50)]) for z in zones))
        second.send_signal(fault)
        if fault is signal.SIGKILL:
            second.wait(10)
        lost = [
            asyncio.create_task(limits.check_limit(keys_of(z), [limit(50)]))
            for _ in range(5)
            for z in on_second
        ]
        async with asyncio.timeout(3):  # what hangs is given up after 5 s
            for _ in range(8):
                calls = (limits.check_limit(keys_of(z), [limit(50)]) for z in healthy)
                assert all(a.is_admitted for a in await asyncio.gather(*calls))
        if fault is signal.SIGSTOP:
            second.send_signal(signal.SIGCONT)
        ended = await asyncio.gather(*lost, return_exceptions=True)
        if fault is signal.SIGKILL:
            assert {type(end) for end in ended} == {ReplyLost}
        await pipeline.close()


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
