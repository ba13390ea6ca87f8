"""The command: tokens, migrations, wrong settings, and `serve` as a process from start to end."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import psutil
import pytest

from dispatcher.config import SettingsError, load_settings
from dispatcher.embedded.engines import Engines, development_secret
from tests.harness.command import run
from tests.harness.servers import (
    JWT_SECRET,
    Serve,
    Server,
    processes_of,
    wait_for_end,
    workers_of,
)


def _run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`dispatcher ARGS` as a process, with exactly these settings."""
    clean = {name: value for name, value in os.environ.items() if "DISPATCHER_" not in name}
    return subprocess.run(
        [sys.executable, "-m", "dispatcher", *args],
        env=clean | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _run_on_terminal(*args: str, answer: str, **env: str) -> tuple[int, str]:
    """`dispatcher ARGS` on a terminal where `answer` is typed; the exit status and what is shown."""
    clean = {name: value for name, value in os.environ.items() if "DISPATCHER_" not in name}
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dispatcher", *args],
            env=clean | env, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    return done.returncode, done.stdout


async def _status(server: Server, path: str = "/healthz") -> int:
    def get() -> int:
        try:
            with urllib.request.urlopen(server.url + path, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return int(error.code)

    return await asyncio.to_thread(get)


async def _until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


def test_help_names_the_commands() -> None:
    result = _run("--help")
    assert result.returncode == 0
    for command in ("serve", "migrate", "token", "cleanup", "demo"):
        assert re.search(rf"^  {command}\b", result.stdout, re.MULTILINE)
    assert "_worker" not in result.stdout


@pytest.mark.parametrize("command", ["serve", "migrate up", "token", "cleanup", "demo"])
def test_every_command_has_help(command: str) -> None:
    assert run(*command.split(), "--help").returncode == 0


def test_a_token_carries_the_usual_claims() -> None:
    result = _run(
        *("token", "--role", "driver", "--sub", "d1", "--ttl-s", "60"),
        DISPATCHER_JWT_SECRET=JWT_SECRET,
        DISPATCHER_JWT_ISSUER="issuer",
    )
    assert result.returncode == 0, result.stderr
    claims = jwt.decode(result.stdout.strip(), JWT_SECRET, algorithms=["HS256"], audience="dispatcher")
    assert claims.items() >= {"sub": "d1", "role": "driver", "iss": "issuer"}.items()
    assert claims["exp"] - claims["iat"] == 60
    assert abs(claims["iat"] - time.time()) < 10


def test_without_a_secret_a_token_is_signed_with_the_directorys(data_dir: Path) -> None:
    result = run("token", "--role", "admin", "--sub", "a1", "--data-dir", str(data_dir))
    secret = development_secret(data_dir)
    claims = jwt.decode(result.stdout.strip(), secret, algorithms=["HS256"], audience="dispatcher")
    assert claims["role"] == "admin"
    assert "iss" not in claims


def test_no_secret_is_made_up_for_given_engines(data_dir: Path) -> None:
    urls = {
        "DISPATCHER_REDIS_URL": "redis://127.0.0.1:1",
        "DISPATCHER_DATABASE_URL": "postgresql://127.0.0.1:1/db",
        "DISPATCHER_DATA_DIR": str(data_dir),
    }
    for args in (["token", "--role", "admin", "--sub", "a1"], ["serve", "--port", "0"]):
        result = _run(*args, **urls)
        assert result.returncode == 2
        assert result.stderr.startswith("error: DISPATCHER_JWT_SECRET: must be set")
        assert result.stdout == ""
    assert not list(data_dir.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISPATCHER_PORT", "many"),
        ("DISPATCHER_LIMIT_GENERAL", "10 a minute"),
        ("DISPATCHER_JWT_SECRET", "short"),
        ("DISPATCHER_REDIS_URL", "http://127.0.0.1"),
        ("DISPATCHER_WORKERS", "0"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name: str, value: str) -> None:
    result = run("serve", **{name: value})
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {name}")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("DISPATCHER_PRESENCE_TTL", "; is DISPATCHER_PRESENCE_TTL_S meant?"),
        ("DISPATCHER_COMMIT_TIMEOUT", "; is DISPATCHER_COMMIT_TIMEOUT_S meant?"),
        ("DISPATCHER_ZZZ", ""),
    ],
)
def test_a_variable_that_is_no_setting_is_refused_by_name(name: str, nearest: str) -> None:
    result = run("token", "--role", "admin", "--sub", "a1", **{name: "5", "OTHER_DISPATCHER_X": "1"})
    assert result.returncode == 2
    assert result.stderr == f"error: {name}: there is no such setting{nearest}\n"


@pytest.mark.parametrize(
    "name", ["DISPATCHER_ZONES_FILE", "DISPATCHER_JWT_JWKS_FILE", "DISPATCHER_PORT"]
)
def test_what_refuses_the_start_is_found_before_a_migration_runs(
    name: str, redis_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[zones.default]\nwaves = 7\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        value = str(taken.getsockname()[1]) if name == "DISPATCHER_PORT" else str(wrong)
        result = _run(
            "serve",
            **{
                "DISPATCHER_REDIS_URL": redis_url,
                "DISPATCHER_DATABASE_URL": empty_database_url,
                "DISPATCHER_JWT_SECRET": JWT_SECRET,
                "DISPATCHER_PORT": "0",
                name: value,
            },
        )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {name}: "), result.stderr
    status = run("migrate", "status", DISPATCHER_DATABASE_URL=empty_database_url).stdout
    assert all(line.endswith("  -") for line in status.splitlines())


def test_engines_that_cannot_be_reached_are_refused_by_name() -> None:
    urls = {
        "DISPATCHER_REDIS_URL": "redis://:hunter2@127.0.0.1:1",
        "DISPATCHER_DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/db",
        "DISPATCHER_JWT_SECRET": JWT_SECRET,
    }
    served = _run("serve", "--port", "0", **urls)
    migrated = run("migrate", "up", **urls)
    assert served.returncode == migrated.returncode == 2
    assert served.stderr.startswith("error: DISPATCHER_REDIS_URL: Redis cannot be reached")
    assert migrated.stderr.startswith("error: DISPATCHER_DATABASE_URL: Postgres cannot be reached")
    assert "hunter2" not in served.stderr + migrated.stderr


@pytest.mark.parametrize("command", ["serve", "fsck"])
def test_a_redis_that_is_not_what_its_url_says(command: str, redis_url: str, database_url: str) -> None:
    result = _run(
        command,
        **{
            "DISPATCHER_REDIS_URL": redis_url.replace("redis://", "redis+cluster://").rpartition("/")[0],
            "DISPATCHER_DATABASE_URL": database_url,
            "DISPATCHER_JWT_SECRET": JWT_SECRET,
            "DISPATCHER_PORT": "0",
        },
    )
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: DISPATCHER_REDIS_URL: 127\.0\.0\.1:\d+ is a single node in standalone mode, "
        r"not one of a cluster\n",
        result.stderr,
    )


def test_migrations_of_a_given_database(empty_database_url: str) -> None:
    url = {"DISPATCHER_DATABASE_URL": empty_database_url}
    before = run("migrate", "status", **url).stdout.splitlines()
    assert before[0].startswith("0001_")
    assert all(line.endswith("  -") for line in before)

    applied = run("migrate", "up", **url).stdout.splitlines()
    assert applied == [f"applied {line.split()[0]}" for line in before]
    assert run("migrate", "up", **url).stdout == "nothing to apply\n"

    reverted = run("migrate", "down", "--steps", "2", "--yes", **url).stdout.splitlines()
    assert reverted == [line.replace("applied", "reverted") for line in applied[:-3:-1]]
    after = run("migrate", "status", **url).stdout.splitlines()
    assert [line.endswith("  -") for line in after][-3:] == [False, True, True]


def test_nothing_is_taken_back_that_nobody_has_agreed_to(database_url: str) -> None:
    url = {"DISPATCHER_DATABASE_URL": database_url}
    down = ("migrate", "down", "--steps", "99")
    before = run("migrate", "status", **url).stdout
    refused = _run(*down, **url)
    assert refused.returncode == 2
    assert "goes: table trip_requests: 0 rows\n" in refused.stderr
    assert "--yes" in refused.stderr
    for answer, status in (("n", 1), ("y", 0)):
        assert run("migrate", "status", **url).stdout == before
        code, shown = _run_on_terminal(*down, answer=answer, **url)
        assert code == status, shown
        assert "Take back " in shown
    assert all(line.endswith("  -") for line in run("migrate", "status", **url).stdout.splitlines())


async def test_no_schema_is_taken_from_under_a_server(serve: Serve) -> None:
    server = await serve()
    url = {"DISPATCHER_DATABASE_URL": server.database_url}
    down = ("migrate", "down", "--steps", "99", "--yes")
    refused = await asyncio.to_thread(run, *down, **url)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: servers are connected to this database (")
    assert await _status(server, "/readyz") == 200
    forced = await asyncio.to_thread(run, *down, "--force", **url)
    assert forced.returncode == 0, forced.stderr
    assert await _status(server, "/readyz") == 503


def test_migrations_of_an_embedded_database(data_dir: Path) -> None:
    stopped = _run("migrate", "up", DISPATCHER_DATA_DIR=str(data_dir))
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.startswith("applied 0001_")
    assert wait_for_end(data_dir, 1.0) == []
    with Engines(data_dir, redis=False):
        running = _run("migrate", "down", "--steps", "1", "--yes", "--data-dir", str(data_dir))
        assert running.returncode == 0, running.stderr
        assert running.stdout.startswith("reverted ")
        assert processes_of(data_dir)


async def test_serve_on_embedded_engines_from_start_to_end(serve: Serve, data_dir: Path) -> None:
    server = await serve(embedded=True)
    assert server.ready.keys() == {"url", "redis_url", "database_url", "pid", "data_dir"}
    assert server.ready["pid"] == server.process.pid
    assert server.ready["data_dir"] == str(data_dir.resolve())
    assert urlsplit(server.ready["redis_url"]).username == "default", "redis-cli 6.2 asks for a user"
    assert await _status(server) == 200
    assert await _status(server, "/readyz") == 200

    second = _run("serve", "--port", "0", "--data-dir", str(data_dir))
    assert second.returncode == 2
    assert second.stderr.startswith("error: DISPATCHER_DATA_DIR: ")
    assert str(server.process.pid) in second.stderr

    assert await server.stop() == 0
    assert server.process.stdout is not None
    assert server.process.stdout.read() == ""  # one line, and no more
    assert wait_for_end(data_dir, 1.0) == []


@pytest.mark.usefixtures("started_before")
async def test_ctrl_c_and_impatience_are_tolerated(serve: Serve, data_dir: Path) -> None:
    server = await serve(embedded=True)
    for _ in range(3):
        server.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.01)
    assert await server.stop() == 0
    assert "Traceback" not in server.log.read_text()
    assert wait_for_end(data_dir, 1.0) == []


@pytest.mark.usefixtures("started_before")
async def test_a_killed_server_can_be_started_again(serve: Serve, data_dir: Path) -> None:
    first = await serve(embedded=True)
    first.kill9()
    second = await serve(embedded=True)
    assert second.redis_url == first.redis_url
    assert second.database_url == first.database_url
    assert await _status(second) == 200
    assert await second.stop() == 0
    assert wait_for_end(data_dir, 2.0) == []


@pytest.mark.usefixtures("started_before")
async def test_an_embedded_engine_that_is_killed_comes_back(serve: Serve, data_dir: Path) -> None:
    server = await serve(embedded=True)
    valkey = next(one for one in processes_of(data_dir) if one.name() == "valkey-server")
    valkey.kill()
    await _until(lambda: any("was started again" in line for line in server.log_lines()))
    assert await _status(server) == 200


async def test_a_password_that_was_given_is_not_printed(serve: Serve) -> None:
    server = await serve()
    password = urlsplit(server.redis_url).password
    assert password
    assert password not in server.ready["redis_url"]
    assert server.ready["redis_url"].startswith("redis://default:***@127.0.0.1:")
    assert server.ready["database_url"] == server.database_url


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_port_in_use_is_refused(serve: Serve, workers: str) -> None:
    server = await serve()
    refused = _run(
        *("serve", "--workers", workers, "--port", str(urlsplit(server.url).port)),
        DISPATCHER_REDIS_URL=server.redis_url,
        DISPATCHER_DATABASE_URL=server.database_url,
        DISPATCHER_JWT_SECRET=JWT_SECRET,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: DISPATCHER_PORT: ")


async def test_the_port_of_several_workers_is_not_shared_with_others(serve: Serve) -> None:
    server = await serve("--workers", "2")
    with socket.socket() as other, pytest.raises(OSError):
        other.bind(("127.0.0.1", urlsplit(server.url).port or 0))
    refused = _run(
        *("serve", "--workers", "2", "--port", str(urlsplit(server.url).port)),
        DISPATCHER_REDIS_URL=server.redis_url,
        DISPATCHER_DATABASE_URL=server.database_url,
        DISPATCHER_JWT_SECRET=JWT_SECRET,
    )
    assert refused.returncode == 2, refused


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost"])
async def test_other_hosts(serve: Serve, host: str) -> None:
    server = await serve("--host", host)
    assert await _status(server) == 200


async def test_workers_stop_with_the_supervisor(serve: Serve) -> None:
    server = await serve("--workers", "2")
    workers = workers_of(server)
    assert len(workers) == 2
    assert await _status(server) == 200
    assert await server.stop() == 0
    assert not any(worker.is_running() for worker in workers)


async def test_a_worker_that_dies_is_replaced(serve: Serve) -> None:
    server = await serve("--workers", "2")
    victim, other = workers_of(server)
    victim.kill()
    await _until(lambda: len({*workers_of(server)} - {victim}) == 2)
    assert other in workers_of(server)
    assert any("Worker died" in line for line in server.log_lines())
    assert await _status(server) == 200


async def test_metrics_of_workers_are_one_truth(serve: Serve) -> None:
    """Over a new connection each time, so that each worker is asked; a killed one loses nothing."""
    server = await serve("--workers", "2")
    asked = 20
    for _ in range(asked):
        assert await _status(server) == 200

    def counted() -> float:
        try:
            with urllib.request.urlopen(f"{server.url}/metrics", timeout=5) as response:
                lines = response.read().decode().splitlines()
        except OSError:  # the killed worker's
            return 0.0
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("dispatcher_actions_total{") and 'action="healthz"' in line
        )

    async def all_tell() -> bool:
        return {await asyncio.to_thread(counted) for _ in range(6)} == {asked}

    async with asyncio.timeout(15):
        while not await all_tell():
            await asyncio.sleep(0.1)
        victim = workers_of(server)[0]
        victim.kill()
        while not await all_tell() or len({*workers_of(server)} - {victim}) != 2:
            await asyncio.sleep(0.1)
    assert all("worker" in json.loads(line) for line in server.log_lines() if "serving" in line)


async def test_workers_die_with_a_killed_supervisor(serve: Serve) -> None:
    server = await serve("--workers", "2")
    workers = workers_of(server)
    server.kill9()
    await _until(
        lambda: (
            not any(
                worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers
            )
        ),
        5.0,
    )


@pytest.mark.usefixtures("started_before")
async def test_no_secret_is_on_a_command_line(serve: Serve, data_dir: Path) -> None:
    server = await serve("--workers", "2", embedded=True)
    password = urlsplit(server.redis_url).password
    assert password
    for process in [*workers_of(server), *processes_of(data_dir)]:
        words = " ".join(process.cmdline())
        assert password not in words
        assert JWT_SECRET not in words


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["demo", "--speed", "nan"], "'--speed': nan is not"),
        (["demo", "--speed", "inf"], "'--speed': inf is not"),
        (["demo", "--minutes", "nan"], "'--minutes': nan is not"),
        (["token", "--role", "driver", "--sub", "<x>"], "'--sub': the server takes 1 to 64"),
        (["token", "--role", "driver", "--sub", "x" * 65], "'--sub': the server takes 1 to 64"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_is_refused_by_name(args: list[str], told: str) -> None:
    result = run(*args)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert told in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("REDIS_URL", "http://h", "takes a URL that begins with redis://"),
        ("DATABASE_URL", "mysql://h", "takes a URL that begins with postgresql://"),
        ("METRICS_ADDRESS", "9100", "takes HOST:PORT"),
        ("CONSOLE_TILE_URL", "https://tiles.example/{x}.png", "lacks {z}, {y}"),
        ("CONSOLE_TILE_URL", "tiles", "takes a URL like https://"),
        ("VEHICLE_TYPES", "car,a b", "takes "),
    ],
)
def test_a_setting_says_in_words_what_it_takes(name: str, value: str, told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(**{name.lower(): value})
    assert str(refused.value).startswith(f"DISPATCHER_{name}: {told}")


def test_the_demos_error_is_one(tmp_path: Path) -> None:
    zones = tmp_path / "zones.toml"
    zones.write_text("[zones.default]\n")
    result = _run(
        "demo", DISPATCHER_REDIS_URL="unix:///nowhere/redis.sock", DISPATCHER_ZONES_FILE=str(zones)
    )
    assert result.returncode == 1
    assert "error: the server did not start:" in result.stderr
    assert "error: error:" not in result.stderr
    assert "DISPATCHER_REDIS_URL" in result.stderr
