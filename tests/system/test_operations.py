"""The operators' commands: what they print, their exit status, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio

from dispatcher.ledger import migrate
from tests.harness.command import run
from tests.harness.servers import Serve, make_token

COMMANDS: Sequence[Sequence[str]] = (
    ("fsck",), ("rebuild", "--zone", "default"), ("replay", "default_x"),
    ("why", "--trip", "default_x", "--driver", "d1"),
)  # fmt: skip


async def _run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`dispatcher ARGS` as a process, with exactly these settings."""
    clean = {name: value for name, value in os.environ.items() if "DISPATCHER_" not in name}
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "dispatcher", *args],
        env=clean | env, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def _post(url: str, role: str, sub: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Authorization": f"Bearer {make_token(sub, role)}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


@pytest.fixture
def engines_env(redis_url: str, database_url: str) -> dict[str, str]:
    return {"DISPATCHER_REDIS_URL": redis_url, "DISPATCHER_DATABASE_URL": database_url}


async def test_beside_a_server(serve: Serve, engines_env: dict[str, str]) -> None:
    server = await serve()
    place = {"lat": 40.7559, "lng": -73.9864}
    for name in ("d1", "d2"):
        body = {"is_online": True, "location": place}
        _post(f"{server.url}/api/driver/availability", "driver", name, body)
    create = f"{server.url}/api/customer/ride/create"
    trip_id = _post(create, "customer", "c1", {"pickup": place})["trip"]["id"]
    accept = {"action": "accept", "trip_request_id": trip_id}
    _post(f"{server.url}/api/driver/ride/trip-action", "driver", "d1", accept)

    done = await _run("fsck", **engines_env)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "default: no drift"), done

    async with redis.asyncio.Redis.from_url(engines_env["DISPATCHER_REDIS_URL"]) as client:
        await client.hset(f"dsp:{{default}}:trip:{trip_id}", "customer_id", "another")
    done = await _run("fsck", "--zone", "default", "--json", **engines_env)
    assert done.returncode == 1, done
    assert json.loads(done.stdout)["found"][0]["subject"] == trip_id
    done = await _run("fsck", "--repair", **engines_env)
    assert (done.returncode, "repaired" in done.stdout) == (0, True), done

    done = await _run("replay", trip_id, **engines_env)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "the row is what follows: accepted")
    done = await _run("why", "--trip", trip_id, "--driver", "d1", **engines_env)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0, "the trip is accepted, and it is this driver's",
    )  # fmt: skip
    request = urllib.request.Request(
        f"{server.url}/api/admin/why?trip={trip_id}&driver=d1",
        headers={"Authorization": f"Bearer {make_token('a1', 'admin')}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.loads(answer.read())["verdict"]["codes"] == ["has_the_trip"]

    done = await _run("rebuild", "--zone", "default", **engines_env)
    assert (done.returncode, "loaded 1 trips" in done.stdout) == (0, True), done
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        assert b'dispatcher_drift{kind="trip",zone="default"} 0.0' in answer.read()


async def test_a_row_that_does_not_follow(engines_env: dict[str, str]) -> None:
    connection = await asyncpg.connect(engines_env["DISPATCHER_DATABASE_URL"])
    await connection.execute(
        "INSERT INTO trip_requests (id, zone, customer_id, pickup_location)"
        " VALUES ('default_x', 'default', 'c1', point(1, 2))"
    )
    await connection.close()
    done = await asyncio.to_thread(run, "replay", "default_x", **engines_env)
    assert done.returncode == 1, done


def _refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    """One clear sentence, and exit status 2."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(lines), done.stdout) == (2, 1, ""), done
    assert words in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("fsck", "--zone", "nowhere"), "there is no zone nowhere; there are default"),
        (("rebuild", "--zone", "nowhere"), "there is no zone nowhere; there are default"),
        (("replay", "default_x"), "There is no trip default_x"),
        (("replay", "nowhere_x"), "There is no zone nowhere"),
        (("why", "--trip", "default_x", "--driver", "d1"), "There is no such trip"),
        (("why", "--trip", "default_x", "--driver", "a b"), "There is no such driver"),
    ],
)
async def test_what_there_is_not(engines_env: dict[str, str], args: Sequence[str], words: str) -> None:
    _refused(await asyncio.to_thread(run, *args, **engines_env), words)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_engines_that_cannot_be_used(
    command: Sequence[str], engines_env: dict[str, str], tmp_path: Path
) -> None:
    nobody = {"DISPATCHER_REDIS_URL": "redis://127.0.0.1:1/0"}
    _refused(await asyncio.to_thread(run, *command, **engines_env | nobody), "Redis cannot be reached")
    nobody = {"DISPATCHER_DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    _refused(
        await asyncio.to_thread(run, *command, **engines_env | nobody), "Postgres cannot be reached"
    )
    _refused(
        await asyncio.to_thread(run, *command, DISPATCHER_DATA_DIR=str(tmp_path / "none")),
        "no embedded engine runs",
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_a_schema_of_another_version(command: Sequence[str], engines_env: dict[str, str]) -> None:
    url = engines_env["DISPATCHER_DATABASE_URL"]
    await migrate.down(url, 1)
    _refused(
        await asyncio.to_thread(run, *command, **engines_env),
        "this database is behind: it lacks migration",
    )
    await migrate.up(url)
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO schema_migrations VALUES (9999, 'later', 'x')")
    await connection.close()
    _refused(
        await asyncio.to_thread(run, *command, **engines_env), "from a newer version of the program"
    )
