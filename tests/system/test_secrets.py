"""No token, key or password is in a log line, a process list, an answer or an error."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import aiohttp
import psutil
import pytest
import redis.asyncio

from tests.harness.servers import JWT_SECRET, Serve, make_token, processes_of
from tests.system.test_cli import _run
from tests.system.test_websocket import PLACE, eventually, session

__all__ = ["session"]  # the fixture

#: Characters that are quoted in a URL: both forms are looked for.
PASSWORD = "hunter2 %/?@" + secrets.token_hex(8)
PATHS = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/console",
    "/api/admin/zones/default/stats",
    "/nope",
)


def _forms(*given: str) -> list[str]:
    return [form for secret in given for form in {secret, quote(secret, safe="")}]


def _assert_hidden(text: str, hidden: Iterable[str], where: str) -> None:
    assert [secret for secret in hidden if secret in text] == [], where


def _command_lines(processes: Iterable[psutil.Process]) -> str:
    return "\n".join(" ".join(process.cmdline()) for process in processes)


async def test_a_server_and_its_workers(
    serve: Serve, session: aiohttp.ClientSession, redis_url: str, database_url: str
) -> None:
    """Good and bad calls, over HTTP and a WebSocket, at the lowest level of the log."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        name = f"user-{secrets.token_hex(4)}"
        await client.execute_command("ACL", "SETUSER", name, "on", f">{PASSWORD}", "~*", "&*", "+@all")
        password = quote(PASSWORD, safe="")
        server = await serve(
            "--workers", "2",
            env={
                "DISPATCHER_REDIS_URL": f"redis://{name}:{password}@{redis_url.partition('@')[2]}",
                "DISPATCHER_DATABASE_URL": f"{database_url}&password={password}",
                "DISPATCHER_LOG_LEVEL": "debug",
            },
        )  # fmt: skip
        tokens = {role: make_token(f"{role}-1", role) for role in ("driver", "customer", "admin")}
        bad = [
            make_token("x", "driver", aud="others"),
            make_token("x", "nobody"),
            "no-token-" + "x" * 30,
        ]
        said = [json.dumps(server.ready)]
        for token in (*tokens.values(), *bad):
            headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "k1"}
            for path in PATHS:
                async with session.get(server.url + path, headers=headers) as answer:
                    said.append(f"{answer.headers} {await answer.text()}")
            for path, body in (
                ("/api/customer/ride/create", {"pickup": PLACE}), ("/api/driver/availability", {"is_online": True}),
                ("/api/driver/ride/trip-action", {"action": "accept", "trip_request_id": token}),
            ):  # fmt: skip
                async with session.post(server.url + path, json=body, headers=headers) as answer:
                    said.append(f"{answer.headers} {await answer.text()}")
            async with session.ws_connect(server.url + "/ws") as opened:
                await opened.send_json({"type": "auth", "token": token})
                said.append(str(await opened.receive()))
                await opened.send_json({"type": "auth", "token": token})
                await opened.send_json({"type": token, "id": 1})
        hidden = _forms(PASSWORD, JWT_SECRET, *tokens.values(), *bad)
        # The caller's own words come back to them: a token that is sent as a frame's type or a trip's id.
        _assert_hidden("\n".join(said), _forms(PASSWORD, JWT_SECRET), "an answer")
        parent = psutil.Process(server.process.pid)
        _assert_hidden(
            _command_lines([parent, *parent.children(recursive=True)]), hidden, "the process list"
        )

        # Both engines turn the server away: errors that the libraries word.
        await client.execute_command("ACL", "SETUSER", name, "resetpass", ">another")
        await client.execute_command("CLIENT", "KILL", "USER", name)

        async def told() -> bool:
            return any("redis" in line and '"warning"' in line for line in server.log_lines())

        await eventually(told)
        await client.execute_command("ACL", "DELUSER", name)
    await server.stop()
    assert len(server.log_lines()) > 10
    _assert_hidden("\n".join(server.log_lines()), hidden, "the log")


def test_errors_at_the_start(tmp_path: Path) -> None:
    """What cannot be used is refused without its password."""
    password = quote(PASSWORD, safe="")
    shut = "127.0.0.1:1"
    key = tmp_path / "key.pem"
    key.write_text(f"-----BEGIN PRIVATE KEY-----\n{PASSWORD}\n-----END PRIVATE KEY-----\n")
    good = {"DISPATCHER_REDIS_URL": f"redis://u:{password}@{shut}/0", "DISPATCHER_JWT_SECRET": JWT_SECRET,
            "DISPATCHER_DATABASE_URL": f"postgresql://u:{password}@{shut}/db"}  # fmt: skip
    serve, cleanup = ("serve", "--port", "0"), ("cleanup",)
    refused: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (serve, {}),
        (serve, {"DISPATCHER_REDIS_URL": f"redis://u:{password}@{shut}/none"}),
        (serve, {"DISPATCHER_REDIS_URL": f"nonsense://u:{password}@{shut}",
                 "DISPATCHER_DATABASE_URL": f"nonsense://u:{password}@{shut}",
                 "DISPATCHER_JWT_SECRET": "short-secret"}),
        (serve, {"DISPATCHER_JWT_PUBLIC_KEY_FILE": str(key)}),
        (cleanup, {"DISPATCHER_DATABASE_URL": f"postgresql://u@{shut},{shut}/db?password={password}"}),
    ]  # fmt: skip

    def run(words: tuple[str, ...], changed: dict[str, str]) -> None:
        done = _run(*words, **{**good, **changed})
        assert done.returncode == 2, (changed, done.stderr)
        assert done.stderr.startswith("error: DISPATCHER_"), done.stderr
        hidden = [*_forms(PASSWORD, JWT_SECRET), "short-secret"]
        _assert_hidden(done.stdout + done.stderr, hidden, str(changed))

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, *zip(*refused, strict=True)))


@pytest.mark.usefixtures("started_before")
async def test_embedded_engines(serve: Serve, data_dir: Path) -> None:
    """Their passwords are in no command line, and they are reachable from this machine alone."""
    server = await serve(embedded=True, env={"DISPATCHER_JWT_SECRET": None})
    hidden = [(data_dir / "valkey" / "password").read_text(), (data_dir / "jwt_secret").read_text()]
    processes = await asyncio.to_thread(processes_of, data_dir)
    assert len(processes) > 3
    _assert_hidden(_command_lines(processes), hidden, "the process list")
    for log in (server.log, data_dir / "valkey" / "valkey.log", data_dir / "postgres.log"):
        _assert_hidden(log.read_text(), hidden, log.name)
    engines = [process for process in processes if process.name().startswith(("valkey", "postgres"))]
    listens = {
        connection.laddr.ip
        for process in engines
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listens == {"127.0.0.1"}
