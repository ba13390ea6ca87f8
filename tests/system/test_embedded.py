"""The embedded engines: private, durable, one server a directory, and nothing left behind."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis
import redis.asyncio

from dispatcher.config import SettingsError
from dispatcher.embedded.engines import (
    Engines,
    EngineUrls,
    development_secret,
    running_database_url,
    stop_left_behind,
)
from dispatcher.embedded.process import EngineError
from dispatcher.embedded.valkey import Valkey
from tests.harness.servers import processes_of, wait_for_end

Hold = Callable[..., "subprocess.Popen[str]"]

HOLDER = """
import sys, time
from pathlib import Path
from dispatcher.embedded.engines import Engines
Engines.guard_grace_s = float(sys.argv[2])
engines = Engines(Path(sys.argv[1]))
engines.start()
print("started", flush=True)
time.sleep(600)
"""


async def _write(urls: EngineUrls, text: str, *, to_disk: bool = False) -> None:
    async with redis.asyncio.Redis.from_url(urls.redis_url) as client:
        await client.set("text", text)
        if to_disk:  # the append-only file, which is synchronized every second
            assert await client.waitaof(num_local=1, num_replicas=0, timeout=5_000) == [1, 0]
    connection = await asyncpg.connect(urls.database_url)
    await connection.execute("CREATE TABLE IF NOT EXISTS texts (text text)")
    await connection.execute("INSERT INTO texts VALUES ($1)", text)
    await connection.close()


async def _read(urls: EngineUrls) -> tuple[str, str]:
    async with redis.asyncio.Redis.from_url(urls.redis_url, decode_responses=True) as client:
        in_redis = await client.get("text")
    connection = await asyncpg.connect(urls.database_url)
    in_postgres = await connection.fetchval("SELECT text FROM texts")
    await connection.close()
    return str(in_redis), str(in_postgres)


@pytest.fixture
def hold(data_dir: Path) -> Iterator[Hold]:
    """Starts a process that has started the engines, to be killed."""
    holders: list[subprocess.Popen[str]] = []

    def start(grace_s: float = 30.0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(data_dir), str(grace_s)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        holders.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        return process

    yield start
    for process in holders:
        with process:  # closes its pipe
            process.kill()


def _kill9(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def _pids(engines: Engines) -> tuple[int, int]:
    assert engines.valkey is not None and engines.valkey.process is not None
    assert engines.postgres is not None and engines.postgres.process is not None
    return engines.valkey.process.pid, engines.postgres.process.pid


async def test_what_was_written_is_there_after_a_quick_second_start(data_dir: Path) -> None:
    with Engines(data_dir) as urls:
        await _write(urls, "kept")
    assert wait_for_end(data_dir, 1.0) == []

    began = time.monotonic()
    with Engines(data_dir) as urls:
        assert time.monotonic() - began < 2.0
        assert await _read(urls) == ("kept", "kept")
    assert wait_for_end(data_dir, 1.0) == []


async def test_the_engines_are_set_up_safely(data_dir: Path) -> None:
    with Engines(data_dir) as urls:
        async with redis.asyncio.Redis.from_url(urls.redis_url, decode_responses=True) as client:
            settings = await client.config_get("*")
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "everysec"
        assert settings["bind"] == "127.0.0.1"

        connection = await asyncpg.connect(urls.database_url)
        assert connection.get_server_version().major == 18
        shown = {
            name: await connection.fetchval("SELECT current_setting($1)", name)
            for name in ("fsync", "synchronous_commit", "max_connections", "listen_addresses")
        }
        await connection.close()
        assert shown == {
            "fsync": "on",
            "synchronous_commit": "on",
            "max_connections": "200",
            "listen_addresses": "",
        }


async def test_only_the_owner_gets_in(data_dir: Path) -> None:
    development_secret(data_dir)
    with Engines(data_dir) as urls:
        for directory in ("postgres", "valkey"):
            assert stat.S_IMODE((data_dir / directory).stat().st_mode) == 0o700
        for file in ("valkey/password", "valkey/valkey.conf", "jwt_secret", "lock", "postgres.log"):
            assert stat.S_IMODE((data_dir / file).stat().st_mode) == 0o600, file
        without_password = "redis://" + urls.redis_url.partition("@")[2]
        async with redis.asyncio.Redis.from_url(without_password) as client:
            with pytest.raises(redis.AuthenticationError):
                await client.get("text")


async def test_a_valkey_with_damaged_files_starts_empty_and_keeps_them(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path)
    files = tmp_path / "appendonlydir"
    with redis.Redis.from_url(valkey.start()) as client:
        for i in range(200):
            client.set(f"text-{i}", "kept")
    valkey.stop()
    (log,) = files.glob("*.incr.aof")
    whole = log.read_bytes()
    damaged = whole[:3000] + bytes(500) + whole[3500:]
    log.write_bytes(damaged)

    with redis.Redis.from_url(valkey.start()) as client:
        assert client.dbsize() == 0
        client.set("text", "new")
    valkey.stop()
    assert (tmp_path / "appendonlydir.damaged" / log.name).read_bytes() == damaged

    # What is only cut off is read up to there.
    (log,) = files.glob("*.incr.aof")
    log.write_bytes(log.read_bytes() + b"*3\r\n$3\r\nSE")
    with redis.Redis.from_url(valkey.start()) as client:
        assert client.get("text") == b"new"
    valkey.stop()


async def test_a_valkey_that_cannot_start_at_all_keeps_its_files(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path)
    with redis.Redis.from_url(valkey.start()) as client:
        client.set("text", "kept")
    valkey.stop()
    with pytest.raises(EngineError, match="did not start"):
        Valkey(tmp_path, Path("/bin/false")).start()
    assert not (tmp_path / "appendonlydir.damaged").exists()
    with redis.Redis.from_url(valkey.start()) as client:
        assert client.get("text") == b"kept"
    valkey.stop()


@pytest.mark.usefixtures("started_before")
async def test_engines_do_not_share_the_terminal_of_the_server(data_dir: Path) -> None:
    engines = Engines(data_dir)
    with engines:
        for pid in _pids(engines):
            assert os.getsid(pid) != os.getsid(0)


@pytest.mark.usefixtures("started_before")
async def test_engines_do_not_see_the_secrets_of_the_server(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPATCHER_JWT_SECRET", "x" * 40)
    monkeypatch.setenv("PGPORT", "1")
    engines = Engines(data_dir)
    with engines:
        for pid in _pids(engines):
            names = psutil.Process(pid).environ().keys()
            assert not [name for name in names if name.startswith(("DISPATCHER_", "PGPORT"))]


@pytest.mark.usefixtures("started_before")
async def test_a_second_live_server_is_refused(data_dir: Path) -> None:
    with Engines(data_dir):
        with pytest.raises(SettingsError, match=f"DISPATCHER_DATA_DIR.*process {os.getpid()}"):
            Engines(data_dir).start()
        with pytest.raises(SettingsError, match="DISPATCHER_DATA_DIR"):
            stop_left_behind(data_dir)


async def test_of_many_that_start_at_once_one_gets_the_directory(data_dir: Path) -> None:
    barrier = threading.Barrier(4)

    def start() -> Engines | None:
        engines = Engines(data_dir)
        barrier.wait()
        try:
            engines.start()
        except SettingsError:
            return None
        return engines

    with ThreadPoolExecutor(4) as pool:
        started = [engines for engines in pool.map(lambda _: start(), range(4)) if engines]
    assert len(started) == 1
    started[0].stop()


@pytest.mark.usefixtures("started_before")
async def test_engines_of_a_killed_server_are_taken_over(data_dir: Path, hold: Hold) -> None:
    holder = hold()
    running = {process.pid for process in processes_of(data_dir)}
    _kill9(holder)

    engines = Engines(data_dir)
    urls = engines.start()
    try:
        assert set(_pids(engines)) < running
        await _write(urls, "kept")
    finally:
        engines.stop()
    assert wait_for_end(data_dir, 2.0) == []
    with Engines(data_dir) as urls:
        assert await _read(urls) == ("kept", "kept")


@pytest.mark.usefixtures("started_before")
async def test_engines_that_were_killed_too_start_again_with_what_was_written(
    data_dir: Path, hold: Hold
) -> None:
    holder = hold()
    url = running_database_url(data_dir)
    assert url is not None
    port = (data_dir / "valkey" / "port").read_text()
    password = (data_dir / "valkey" / "password").read_text()
    await _write(EngineUrls(f"redis://:{password}@127.0.0.1:{port}/0", url), "kept", to_disk=True)
    for process in [psutil.Process(holder.pid), *processes_of(data_dir)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue  # a child of Postgres that left with its parent
    holder.wait()

    with Engines(data_dir) as urls:
        assert await _read(urls) == ("kept", "kept")
    assert wait_for_end(data_dir, 1.0) == []


@pytest.mark.usefixtures("started_before")
async def test_engines_of_a_killed_server_end_by_themselves_if_nobody_comes(
    data_dir: Path, hold: Hold
) -> None:
    _kill9(hold(grace_s=0.3))
    assert wait_for_end(data_dir, 20.0) == []


async def test_a_start_waits_until_what_was_left_behind_is_stopped(data_dir: Path) -> None:
    with (data_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as stop_left_behind does, under no owner
        threading.Timer(0.5, fcntl.flock, (lock.fileno(), fcntl.LOCK_UN)).start()
        began = time.monotonic()
        with Engines(data_dir, postgres=False):
            assert time.monotonic() - began >= 0.5


@pytest.mark.usefixtures("started_before")
async def test_a_pid_file_that_names_another_program_is_no_obstacle(data_dir: Path) -> None:
    with Engines(data_dir, redis=False):
        stale = (data_dir / "postgres" / "postmaster.pid").read_text()
    lines = [str(os.getpid()), *stale.splitlines()[1:]]
    (data_dir / "postgres" / "postmaster.pid").write_text("\n".join(lines) + "\n")
    with Engines(data_dir, redis=False) as urls:
        await (await asyncpg.connect(urls.database_url)).close()


async def test_half_a_first_start_is_no_obstacle(data_dir: Path) -> None:
    (data_dir / "postgres.new.1").mkdir()
    (data_dir / "postgres.new.1" / "PG_VERSION").write_text("18\n")
    with Engines(data_dir, redis=False) as urls:
        await (await asyncpg.connect(urls.database_url)).close()
    assert not list(data_dir.glob("postgres.new.*"))


@pytest.mark.usefixtures("started_before")
async def test_a_restart_keeps_the_urls(data_dir: Path) -> None:
    engines = Engines(data_dir)
    with engines as urls:
        before = _pids(engines)
        await _write(urls, "kept")
        engines.stop()
        assert engines.start() == urls
        assert not set(before) & set(_pids(engines))
        assert await _read(urls) == ("kept", "kept")


@pytest.mark.usefixtures("started_before")
async def test_an_engine_that_died_is_revived_at_the_same_url(data_dir: Path) -> None:
    engines = Engines(data_dir)
    with engines as urls:
        assert engines.revive() == []
        await _write(urls, "kept", to_disk=True)
        for pid in _pids(engines):
            psutil.Process(pid).kill()
        deadline = time.monotonic() + 5
        died: list[str] = []
        while len(died) < 2 and time.monotonic() < deadline:
            died += engines.revive()
        assert sorted(died) == ["Postgres", "Valkey"]
        assert engines.urls == urls
        assert await _read(urls) == ("kept", "kept")


async def test_one_engine_alone(data_dir: Path) -> None:
    with Engines(data_dir, postgres=False) as urls:
        assert urls.database_url == ""
        assert running_database_url(data_dir) is None
        assert not (data_dir / "postgres").exists()
    with Engines(data_dir, redis=False) as urls:
        assert urls.redis_url == ""
        assert running_database_url(data_dir) == urls.database_url


async def test_without_embedded_engines_nothing_is_made(data_dir: Path) -> None:
    with Engines(data_dir / "unused", redis=False, postgres=False) as urls:
        assert urls == EngineUrls("", "")
    assert not (data_dir / "unused").exists()


@pytest.mark.parametrize("name", ["with space, comma and 'quotes\"", "l" * 120])
async def test_any_name_of_a_directory(data_dir: Path, name: str) -> None:
    with Engines(data_dir / name) as urls:
        await _write(urls, "kept")
        assert await _read(urls) == ("kept", "kept")
        connection = await asyncpg.connect(urls.database_url)
        shown = await connection.fetchval("SELECT current_setting('unix_socket_directories')")
        await connection.close()
        sockets = Path(str(shown).strip('"').replace('""', '"'))
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    if not sockets.is_relative_to(data_dir):
        assert not sockets.exists()


def test_the_development_secret_is_made_once(data_dir: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        secrets = set(pool.map(lambda _: development_secret(data_dir), range(8)))
    assert len(secrets) == 1
    assert len(secrets.pop().encode()) >= 32
    assert [path.name for path in data_dir.iterdir()] == ["jwt_secret"]
