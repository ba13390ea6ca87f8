"""Gathered calls: sent once, answered each, whoever goes away meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import fakeredis
import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.live.client import connect
from dispatcher.live.keys import keys_of
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.scripts import LuaScripts
from tests.harness.lua_zone import WarmLimits, limit


async def test_an_unknown_script_is_loaded_and_only_its_call_is_sent_again(
    redis_url: str, client: Any
) -> None:
    """The rest of a batch has run when one call in it fails."""
    pipeline = Pipeline(client)
    limits, keys = WarmLimits(pipeline), keys_of("noscript")
    await pipeline.load_scripts()
    wide = [limit(100)]
    first = await limits.check_limit(keys, wide)
    assert first.limit is not None
    assert first.limit.remaining == 99

    # In one batch: known, flushed in the middle, unknown from there on.
    calls: list[Any] = [asyncio.ensure_future(limits.check_limit(keys, wide)) for _ in range(3)]
    await asyncio.sleep(0)
    flush = pipeline.command("SCRIPT", "FLUSH")
    counted = [pipeline.command("INCR", "noscript:count") for _ in range(2)]
    late = [asyncio.ensure_future(limits.check_limit(keys, wide)) for _ in range(3)]
    admissions = await asyncio.gather(*calls, *late)
    assert await flush
    assert await asyncio.gather(*counted) == [1, 2]
    left = sorted(a.limit.remaining for a in admissions if a.limit)
    assert left == [93, 94, 95, 96, 97, 98], "each was counted exactly once"
    assert await client.llen(keys.limit("general", "d1")) == 7


async def test_more_zones_ask_at_once_than_there_are_connections(redis_url: str) -> None:
    client = connect(redis_url)
    pipeline = Pipeline(client)
    run_ids = await asyncio.gather(*(pipeline.run_id(f"zone-{i}") for i in range(300)))
    assert len(set(run_ids)) == 1
    await client.aclose()


@pytest.mark.parametrize("backend", ["valkey", "fakeredis"])
@pytest.mark.parametrize(
    "strange", [None, True, ["a"], {}, "\ud800", object()], ids=lambda value: type(value).__name__
)
async def test_what_cannot_be_sent_is_refused_at_its_own_call(
    backend: str, strange: Any, client: Any
) -> None:
    """Whoever shares a batch with it is answered, and with what it has asked for."""
    pipeline = Pipeline(client if backend == "valkey" else fakeredis.FakeAsyncRedis())
    echoes = [pipeline.command("SET", "strange", "before", "GET")]
    with pytest.raises((TypeError, UnicodeEncodeError)):
        pipeline.command("SET", "strange", strange)
    with pytest.raises((TypeError, UnicodeEncodeError)):
        pipeline.run("check_limit", ["strange"], [1, strange])
    echoes += [pipeline.command("ECHO", str(number)) for number in range(3)]
    async with asyncio.timeout(5):
        _, *told = await asyncio.gather(*echoes)
        assert [str(text, "ascii") if isinstance(text, bytes) else text for text in told] == list("012")
        await pipeline.close()


async def test_a_whole_batch_after_a_restart(client: Any) -> None:
    pipeline = Pipeline(client)
    limits, keys = WarmLimits(pipeline), keys_of("noscript")
    await client.script_flush()
    admissions = await asyncio.gather(*(limits.check_limit(keys, [limit(1000)]) for _ in range(700)))
    assert all(admission.is_admitted for admission in admissions)
    assert await client.llen(keys.limit("general", "d1")) == 700


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


async def test_a_script_that_is_missed_while_another_one_is_loaded(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, scripts, keys = Pipeline(client), LuaScripts.read(), keys_of("missed")
    await pipeline.command("PING")
    await client.script_flush()
    load, asked = client.script_load, []

    async def ask_meanwhile(text: str) -> Any:
        if not asked:
            asked.append(pipeline.run("read_waves", [keys.trip("t"), keys.offers("t")], []))
            await asyncio.wait_for(_is_sent(pipeline), 5)
        return await load(text)

    monkeypatch.setattr(client, "script_load", ask_meanwhile)
    assert len(await pipeline.run("read_clock", [keys.epoch], [])) == 2
    assert await asked[0] == [[-1, 0, []]]
    monkeypatch.undo()
    assert await client.script_exists(*(scripts.digests[n] for n in ("read_clock", "read_waves"))) == [
        1,
        1,
    ]
    await pipeline.close()


async def _is_sent(pipeline: Pipeline) -> None:
    """What was asked has been answered that its script is unknown."""
    while pipeline._waiting or not pipeline._unknown_scripts:
        await asyncio.sleep(0)


async def test_who_is_given_a_script_and_does_not_know_it_is_no_help(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a failover came between: another server answers than the one that was given it."""
    pipeline = Pipeline(client)
    await client.script_flush()

    async def elsewhere(_: str) -> None: ...

    monkeypatch.setattr(client, "script_load", elsewhere)
    with pytest.raises(StoreUnavailable):
        await pipeline.run("read_clock", [keys_of("elsewhere").epoch], [])
    await pipeline.close()


async def test_an_inspection_is_loaded_once_it_is_asked_for(client: Any) -> None:
    """Each script that Redis has makes all others slower."""
    pipeline, scripts = Pipeline(client), LuaScripts.read()
    await client.script_flush()
    await pipeline.load_scripts()
    names = ["inspect/zone", "inspect/why", "claim_accept"]
    assert await client.script_exists(*(scripts.digests[name] for name in names)) == [False, False, True]
    await pipeline.run("inspect/zone", [keys_of("inspected").epoch], [])
    assert await client.script_exists(*(scripts.digests[name] for name in names)) == [True, False, True]
    await pipeline.close()


async def test_a_cancelled_claim_is_sent_all_the_same(client: Any) -> None:
    pipeline = Pipeline(client)
    limits, keys = WarmLimits(pipeline), keys_of("cancelled")
    await pipeline.load_scripts()
    task = asyncio.create_task(limits.check_limit(keys, [limit(5)]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await pipeline.close()
    assert await client.llen(keys.limit("general", "d1")) == 1
