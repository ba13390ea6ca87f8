"""Gathered calls: sent once, answered each, in a cluster too, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.limits import Limit
from dispatcher.core.transitions import ACCEPT
from dispatcher.core.trips import Status, Trip
from dispatcher.embedded.packages import valkey_program
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.protocol import connect
from dispatcher.live.scripts import Attempt, Scripts, Settlement, driver_fields, flat_to_dict
from dispatcher.resources import LUA_DIR
from tests.harness.lua_zone import FIX_AGE_MS, key, limit, make_driver, make_trip

SCRIPTS = sorted(path.stem for path in LUA_DIR.glob("*.lua"))


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Any]:
    opened = connect(redis_url, cluster=False)
    yield opened
    await opened.aclose()


class Proxy:
    """Stands between a client and Redis; `doom` may end a connection once bytes have passed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.chunks: list[bytes] = []
        self.connections = 0
        self.doom: Callable[[bytes], bool] = lambda _: False
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        upstream, onward = await asyncio.open_connection("127.0.0.1", self._port)

        async def back() -> None:
            with contextlib.suppress(OSError):
                while data := await upstream.read(65_536):
                    writer.write(data)
                    await writer.drain()

        task = asyncio.create_task(back())
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                self.chunks.append(data)
                doomed = self.doom(data)
                if doomed:
                    task.cancel()  # Redis gets it, the client never hears of it
                onward.write(data)
                await onward.drain()
                if doomed:
                    await asyncio.sleep(0.05)
                    break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for end in (writer, onward):
            end.close()

    @contextlib.asynccontextmanager
    async def listen(self, redis_url: str) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = redis_url.replace(f":{self._port}/", f":{port}/")
        try:
            yield self
        finally:
            server.close()


def _port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])


# --- scripts that are not known


async def test_an_unknown_script_is_loaded_and_only_its_call_is_sent_again(
    redis_url: str, client: Any
) -> None:
    """The rest of a batch has run when one call in it fails."""
    pipeline = Pipeline(client)
    scripts, keys = Scripts(pipeline), keys_of("noscript")
    await pipeline.load_scripts()
    wide = [limit(100)]
    first = await scripts.check_limit(keys, wide)
    assert first.limit is not None
    assert first.limit.remaining == 99

    # In one batch: known, flushed in the middle, unknown from there on.
    calls: list[Any] = [asyncio.ensure_future(scripts.check_limit(keys, wide)) for _ in range(3)]
    await asyncio.sleep(0)
    flush = pipeline.command("SCRIPT", "FLUSH")
    counted = [pipeline.command("INCR", "noscript:count") for _ in range(2)]
    late = [asyncio.ensure_future(scripts.check_limit(keys, wide)) for _ in range(3)]
    verdicts = await asyncio.gather(*calls, *late)
    assert await flush
    assert await asyncio.gather(*counted) == [1, 2]
    left = sorted(v.limit.remaining for v in verdicts if v.limit)
    assert left == [93, 94, 95, 96, 97, 98], "each was counted exactly once"
    assert await client.llen(keys.limit("general", "d1")) == 7


async def test_a_whole_batch_after_a_restart(client: Any) -> None:
    pipeline = Pipeline(client)
    scripts, keys = Scripts(pipeline), keys_of("noscript")
    await client.script_flush()
    verdicts = await asyncio.gather(*(scripts.check_limit(keys, [limit(1000)]) for _ in range(700)))
    assert {v.code for v in verdicts} == {"admitted"}
    assert await client.llen(keys.limit("general", "d1")) == 700


# --- callers that go away


async def test_a_cancelled_caller_harms_nobody(client: Any) -> None:
    pipeline = Pipeline(client)
    await pipeline.command("PING")
    tasks = []
    for i in range(300):

        async def echo(text: str) -> str:
            return str(await pipeline.command("ECHO", text))

        tasks.append(asyncio.create_task(echo(str(i))))
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    await asyncio.sleep(0.001)
    for task in tasks[1::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for i, result in enumerate(results):
        # A cancel that came after the reply finds its own reply there.
        assert isinstance(result, asyncio.CancelledError) or result == str(i)
        assert i % 3 != 2 or result == str(i)
    assert await pipeline.command("ECHO", "still") == "still"


async def test_a_cancelled_claim_is_sent_all_the_same(client: Any) -> None:
    pipeline = Pipeline(client)
    scripts, keys = Scripts(pipeline), keys_of("cancelled")
    await pipeline.load_scripts()
    task = asyncio.create_task(scripts.check_limit(keys, [limit(5)]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await pipeline.close()
    assert await client.llen(keys.limit("general", "d1")) == 1


# --- connections that are lost


async def test_a_lost_connection_is_told_and_nothing_is_sent_twice(redis_url: str) -> None:
    async with Proxy(_port_of(redis_url)).listen(redis_url) as proxy:
        client = connect(proxy.url, cluster=False)
        pipeline = Pipeline(client)
        scripts, keys = Scripts(pipeline), keys_of("lost")
        await pipeline.load_scripts()
        await asyncio.gather(*(pipeline.command("PING") for _ in range(3)))

        proxy.doom = lambda data: b"EVALSHA" in data
        results = await asyncio.gather(
            *(scripts.check_limit(keys, [limit(100)]) for _ in range(20)), return_exceptions=True
        )
        assert {type(result) for result in results} == {StoreUnavailable}
        assert sum(chunk.count(b"EVALSHA") for chunk in proxy.chunks) <= 20
        await asyncio.sleep(0.1)
        ran = int(await _direct(redis_url, "LLEN", keys.limit("general", "d1")))
        assert 0 < ran <= 20, "they ran, and none of them twice"

        # And it goes on by itself.
        proxy.doom = lambda _: False
        assert (await scripts.check_limit(keys, [limit(100)])).code == "admitted"
        assert int(await _direct(redis_url, "LLEN", keys.limit("general", "d1"))) == ran + 1
        await pipeline.close()
        await client.aclose()


async def test_a_connection_that_was_lost_while_idle(redis_url: str, client: Any) -> None:
    pipeline = Pipeline(client)
    await pipeline.command("PING")
    await _direct(redis_url, "CLIENT", "KILL", "ID", str(await pipeline.command("CLIENT", "ID")))
    results = await asyncio.gather(
        *(pipeline.command("INCR", "lost:count") for _ in range(5)), return_exceptions=True
    )
    numbers = [result for result in results if not isinstance(result, StoreUnavailable)]
    assert numbers in ([], [1, 2, 3, 4, 5])
    again = await pipeline.command("INCR", "lost:count")
    assert again == len(numbers) + 1


async def test_nobody_is_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        client = connect(f"redis://127.0.0.1:{taken.getsockname()[1]}/0", cluster=False)
        with pytest.raises(StoreUnavailable):
            await Pipeline(client).command("PING")
        await client.aclose()


async def test_what_ran_is_told_where_loading_scripts_fails(redis_url: str) -> None:
    """Only the calls that were to be sent again are lost."""
    async with Proxy(_port_of(redis_url)).listen(redis_url) as proxy:
        client = connect(proxy.url, cluster=False)
        pipeline = Pipeline(client)
        scripts, keys = Scripts(pipeline), keys_of("half")
        await client.script_flush()
        proxy.doom = lambda data: b"Atomic because" in data
        call = asyncio.ensure_future(scripts.check_limit(keys, [limit(5)]))
        await asyncio.sleep(0)
        ran = pipeline.command("INCR", "half:count")
        results = await asyncio.gather(call, ran, return_exceptions=True)
        assert isinstance(results[0], StoreUnavailable)
        assert results[1] == 1
        await pipeline.close()
        await client.aclose()


async def test_a_server_that_cannot_write_is_unavailable(client: Any) -> None:
    pipeline = Pipeline(client)
    await pipeline.load_scripts()
    await client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="memory"):
            await Scripts(pipeline).check_limit(keys_of("oom"), [limit(5)])
    finally:
        await client.config_set("maxmemory", "0")
    assert (await Scripts(pipeline).check_limit(keys_of("oom"), [limit(5)])).code == "admitted"


async def _direct(url: str, *command: str) -> Any:
    async with redis.asyncio.Redis.from_url(url, decode_responses=True) as client:
        return await client.execute_command(*command)


# --- a cluster


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
        assert (await Scripts(pipeline).check_limit(keys_of("z"), [limit(5)])).code == "admitted"
        process.kill()
        process.wait()
        calls = (Scripts(pipeline).check_limit(keys_of(z), [limit(5)]) for z in ("a", "b", "c"))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {StoreUnavailable}
        with pytest.raises(StoreUnavailable):
            await pipeline.run_id(keys_of("z").epoch)


async def test_every_script_runs_in_a_cluster(cluster: tuple[str, subprocess.Popen[bytes]]) -> None:
    """Every key is declared and of one slot: a cluster refuses a script that breaks that."""
    async with _client_of(cluster[0]) as client:
        await _run_every_script(client)


async def _run_every_script(client: Any) -> None:
    pipeline = Pipeline(client)
    ran: set[str] = set()
    run = pipeline.run
    pipeline.run = lambda script, *rest: ran.add(script) or run(script, *rest)  # type: ignore[method-assign, func-returns-value]
    scripts = Scripts(pipeline)
    await asyncio.gather(*(_walk(pipeline, scripts, keys_of(name)) for name in ("a", "b", "c-1")))
    assert sorted(ran) == SCRIPTS
    assert len(await pipeline.run_id(keys_of("a").epoch)) == 40
    await client.script_flush()
    verdicts = await asyncio.gather(
        *(scripts.check_limit(keys_of(f"z{i}"), [limit(5)]) for i in range(50))
    )
    assert {v.code for v in verdicts} == {"admitted"}
    await pipeline.close()


async def _walk(pipeline: Pipeline, scripts: Scripts, keys: Keys) -> None:
    """A short life of a zone that calls each script."""
    limits: list[Limit] = [limit(100), limit(100, name="ip", subject="10.0.0.1")]
    trip_id = f"{keys.zone}_1"

    def attempt(token: str, trip: str = trip_id) -> Attempt:
        return Attempt(token, trip, "d1", 10_000, key(token), 60_000, limits)

    async def settle(attempt: Attempt, settlement: Settlement) -> list[int | str]:
        return await scripts.settle_changes(keys, [(attempt, settlement)], fix_age_ms=FIX_AGE_MS)

    assert (await scripts.check_limit(keys, limits)).code == "admitted"
    assert (await scripts.claim_creation(keys, attempt("t0"))).code == "cold"
    await pipeline.command("SET", keys.epoch, "1 0 run")
    created = await scripts.claim_creation(keys, attempt("t0"))
    assert created.code == "claimed"
    now_ms = created.now_ms
    trip = make_trip("1", id=trip_id, zone=keys.zone, pickup_lat=50.1, pickup_lng=8.6)
    settled = Settlement(trip=trip, event="{}", message="[]", answer="D f 201 {}")
    assert await settle(attempt("t0"), settled) == [1]

    for name in ("d1", "d2"):
        await scripts.load_driver(keys, make_driver(name, zone=keys.zone))
    code, _, results = await scripts.put_positions(
        keys, "car", [("d1", 50.1, 8.6, now_ms), ("d2", 50.1, 8.61, now_ms)], fix_age_ms=FIX_AGE_MS
    )
    assert (code, results) == ("taken", [("taken", "", None), ("taken", "", None)])
    touches = [("driver", name, "c1", "{}", 60_000) for name in ("d1", "d2")]
    await scripts.touch_presence(keys, touches)
    assert (await scripts.claim_waves(keys))[2] == [trip_id]
    near = await scripts.nearest(keys, trip, radius_m=5_000, most=10)
    assert [driver for driver, _ in near] == ["d1", "d2"]
    wave = await scripts.offer_trip(
        keys, trip, "{}", near, reach=0, size=5, answer_ms=15_000, again_ms=1_000, share=3,
        fix_age_ms=FIX_AGE_MS, patience_ms=60_000, ask_again=False,
    )  # fmt: skip
    assert (wave.code, wave.offered) == ("offered", ["d1", "d2"])
    assert [offer[0] for offer in await scripts.read_offers(keys, "d2")] == [trip_id]

    declined = Attempt("t1", trip_id, "d2", 10_000, None, 0, limits)
    assert (await scripts.claim_decline(keys, declined, version=0)).code == "claimed"
    assert await settle(declined, Settlement(bars="d2", inboxes=["d2"])) == [0]
    accept = attempt("t2")
    verdict = await scripts.claim_accept(keys, accept, version=0, policy="offered")
    assert (verdict.code, verdict.detail[2]) == ("claimed", ["d1"])
    taken = ACCEPT.apply(trip, now_ms, driver_id="d1", driver_vehicle_type="car")
    assert await settle(
        accept,
        Settlement(trip=taken, driver_id="d1", driver_vehicle="car", effect="take", inboxes=["d1"]),
    ) == [1]  # fmt: skip

    step = attempt("t3")
    sources = (Status.ACCEPTED,)
    verdict = await scripts.claim_transition(
        keys, step, version=1, role="driver", actor="d1", sources=sources
    )
    assert verdict.code == "claimed"
    assert await scripts.release_claim(keys, step) == 1
    offline = attempt("t4")
    verdict = await scripts.claim_availability(
        keys, offline, goes_offline=True, changes_zone=False, vehicle_type=""
    )
    assert verdict.code == "claimed"
    assert Trip.from_hash(flat_to_dict(verdict.detail[1])) == taken
    fields = driver_fields(make_driver("d1", zone=keys.zone, version=1, is_online=False))
    assert await settle(
        offline,
        Settlement(driver_id="d1", driver_vehicle="car", effect="state", driver_fields=fields),
    ) == [0]  # fmt: skip
    assert not await scripts.is_online(keys, "d1")
    assert await scripts.load_trip(keys, make_trip("1", id=trip_id, version=9), former_driver="d1")
    assert (await scripts.read_driver(keys, "d1"))["trip_id"] == ""
    assert await scripts.customer_of(keys, trip_id) == "c1"
    assert len(await scripts.read_trip(keys, trip_id)) % 2 == 0

    assert await scripts.drop_presence(keys, "driver:d1", "c1") == 0
    assert await scripts.sweep_absent(keys, grace_ms=0) == ["driver:d1"]
    assert await scripts.forget_absent(keys, "driver:d2") is False
    assert await scripts.sweep_claims(keys) == []
    assert await scripts.sweep_fixes(keys, fix_age_ms=0) >= 0
