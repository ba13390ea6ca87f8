"""`dispatcher fsck` from outside, beside a server that runs."""

from __future__ import annotations

import json
import subprocess

import redis.asyncio

from dispatcher.live.keys import keys_of
from tests.harness.servers import JWT_SECRET, Serve, Server
from tests.harness.services import PLACE, open_city
from tests.system.test_cli import _run


def _fsck(server: Server, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    urls = {"DISPATCHER_REDIS_URL": server.redis_url, "DISPATCHER_DATABASE_URL": server.database_url}
    return _run("fsck", *options, **(urls | {"DISPATCHER_JWT_SECRET": JWT_SECRET} | env))


async def test_drift_is_told_and_repaired(serve: Serve) -> None:
    server = await serve()
    async with open_city(server.redis_url, server.database_url) as city:
        await city.online("d1", location=PLACE)
        trip = await city.trip()
    equal = _fsck(server)
    assert equal.returncode == 0, equal
    assert equal.stdout == "default: Redis and Postgres agree\n"
    async with redis.asyncio.Redis.from_url(server.redis_url) as client:
        await client.hset(keys_of("default").trip(trip), "version", "7")
    found = _fsck(server)
    assert found.returncode == 1
    assert found.stdout.startswith(
        f"default: trip {trip}  Redis: pending, version 7, driver -  Postgres: "
    )
    as_json = _fsck(server, "--json", "--zone", "default")
    assert as_json.returncode == 1
    (drift,) = json.loads(as_json.stdout)["drift"]
    assert (drift["kind"], drift["subject"], drift["is_repaired"]) == ("trip", trip, False)
    repaired = _fsck(server, "--repair")
    assert repaired.returncode == 0, repaired
    assert repaired.stdout.endswith("(repaired)\n")
    assert _fsck(server).returncode == 0


async def test_what_cannot_be_compared(serve: Serve, empty_database_url: str) -> None:
    server = await serve()
    unknown = _fsck(server, "--zone", "atlantis")
    assert (unknown.returncode, unknown.stderr) == (
        2, "error: --zone: atlantis is none of the zones, which are default\n",
    )  # fmt: skip
    away = _fsck(server, DISPATCHER_REDIS_URL="redis://127.0.0.1:1/0")
    assert away.returncode == 2
    assert away.stderr.startswith("error: DISPATCHER_REDIS_URL: Redis cannot be reached")
    behind = _fsck(server, DISPATCHER_DATABASE_URL=empty_database_url)
    assert behind.returncode == 2
    assert "the schema lacks" in behind.stderr
    assert "run `dispatcher migrate up`" in behind.stderr


def test_no_server_runs(tmp_path: object) -> None:
    refused = _run("fsck", "--data-dir", str(tmp_path))
    assert refused.returncode == 2
    assert (
        refused.stderr == f"error: DISPATCHER_REDIS_URL: is not set, and no server runs on {tmp_path}\n"
    )
