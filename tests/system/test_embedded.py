"""The embedded engines: private, durable, one server a directory, and nothing left behind."""

from __future__ import annotations

import fcntl
import os
import pwd
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
import structlog
import structlog.testing

from dispatcher.config import SettingsError
from dispatcher.embedded.engines import (
    Engines,
    EngineUrls,
    development_secret,
    running_database_url,
    stop_left_behind,
)
from dispatcher.embedded.packages import valkey_program
from dispatcher.embedded.postgres_account import find_or_make_account
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


@pytest.fixture
def valkey(data_dir: Path) -> Iterator[Valkey]:
    """One that has been stopped, with a base file and a log: each has half of what was written."""
    engine = Valkey(data_dir)
    try:
        with redis.Redis.from_url(engine.start()) as client:
            for name in ("base", "log"):
                for i in range(200):
                    client.set(f"{name}-{i}", "kept")
                if name == "base":
                    client.bgrewriteaof()
                    while not any(file.name.endswith(".2.base.rdb") for file in _files(data_dir)):
                        time.sleep(0.01)
        engine.stop()
        yield engine
    finally:
        engine.stop()


def _files(data_dir: Path) -> list[Path]:
    return list((data_dir / "appendonlydir").iterdir())


def _put_aside(data_dir: Path) -> list[Path]:
    return sorted(data_dir.glob("appendonlydir.damaged-*"))


def _size_of(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.dbsize())


def _zeros(whole: bytes) -> bytes:
    return whole[: len(whole) // 2] + bytes(300) + whole[len(whole) // 2 + 300 :]


DAMAGES: list[tuple[str, Callable[[bytes], bytes | None], str]] = [
    ("incr.aof", _zeros, "Bad file format reading the append only file"),
    ("incr.aof", lambda whole: whole + bytes(400), "Bad file format reading the append only file"),
    ("incr.aof", lambda _: None, "Unable to obtain the AOF file"),
    ("base.rdb", lambda _: None, "Unable to obtain the AOF file"),
    ("base.rdb", lambda whole: bytes(12) + whole[12:], "Bad file format reading the append only file"),
    ("base.rdb", lambda whole: whole[: len(whole) // 2], "Internal error in RDB reading"),
    ("base.rdb", _zeros, "RDB"),
    ("manifest", lambda _: b"garbage", "The AOF manifest file contains too long line"),
    ("manifest", lambda _: b"", "Found an empty AOF manifest"),
    ("manifest", lambda whole: whole.replace(b"seq 2", b"seq x"), "Invalid AOF manifest file format"),
]


@pytest.mark.parametrize(("ends", "damage", "reason"), DAMAGES)
def test_a_valkey_with_damaged_files_starts_empty_and_keeps_them(
    valkey: Valkey, data_dir: Path, ends: str, damage: Callable[[bytes], bytes | None], reason: str
) -> None:
    (file,) = (file for file in _files(data_dir) if file.name.endswith(ends))
    damaged = damage(file.read_bytes())
    if damaged is None:
        file.unlink()
    else:
        file.write_bytes(damaged)
    left = {file.name: file.read_bytes() for file in _files(data_dir)}
    with structlog.testing.capture_logs() as logs:
        assert _size_of(valkey.start()) == 0
    (aside,) = _put_aside(data_dir)
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == left
    (told,) = (line for line in logs if line["log_level"] == "warning")
    assert told["moved_to"] == str(aside)
    assert reason in told["reason"]


def test_a_log_of_valkey_that_is_only_cut_off_is_read_up_to_there(
    valkey: Valkey, data_dir: Path
) -> None:
    (log,) = (file for file in _files(data_dir) if file.name.endswith("incr.aof"))
    log.write_bytes(log.read_bytes() + b"*3\r\n$3\r\nSE")
    assert _size_of(valkey.start()) == 400
    assert _put_aside(data_dir) == []


@pytest.mark.parametrize("end", ["kill -KILL $$", "kill -TERM $$", "echo no memory; exit 1"])
def test_a_valkey_that_ends_for_another_reason_keeps_its_files(
    valkey: Valkey, data_dir: Path, end: str
) -> None:
    """Killed as it starts, or without what it needs: its log does not name the files. The next start
    would be a good one."""
    program, once = data_dir / "valkey-server", data_dir / "once"
    first = f"[ -e '{once}' ] || {{ touch '{once}'; {end}; }}"
    program.write_text(f"#!/bin/sh\n{first}\nexec '{valkey_program()}' \"$@\"\n")
    program.chmod(0o755)
    killed = Valkey(data_dir, program)
    try:
        with pytest.raises(EngineError, match="did not start"):
            killed.start()
        assert _put_aside(data_dir) == []
        assert _size_of(killed.start()) == 400
    finally:
        killed.stop()


def test_a_valkey_that_does_not_start_empty_either_has_its_files_back(
    valkey: Valkey, data_dir: Path
) -> None:
    program = data_dir / "valkey-server"
    program.write_text("#!/bin/sh\necho Bad file format reading the append only file x\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(EngineError, match="Bad file format"):
        Valkey(data_dir, program).start()
    assert _put_aside(data_dir) == []
    assert _size_of(valkey.start()) == 400


def test_damaged_files_that_cannot_be_put_aside_are_an_error_of_the_engine(
    valkey: Valkey, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in _files(data_dir):
        file.write_text("garbage")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "appendonlydir":
            raise PermissionError("read-only")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(EngineError, match="cannot be put aside"):
        valkey.start()
    assert _files(data_dir)


def test_the_newest_three_of_damaged_files_are_kept(valkey: Valkey, data_dir: Path) -> None:
    notes = data_dir / "appendonlydir.damaged"
    notes.write_text("an operator's")
    for number in range(5):
        for file in _files(data_dir):
            file.write_text(f"garbage {number}")
        valkey.start()
        valkey.stop()
    kept = [next(path.iterdir()).read_text() for path in _put_aside(data_dir)]
    assert kept == ["garbage 2", "garbage 3", "garbage 4"]
    assert notes.read_text() == "an operator's"


def test_a_start_that_is_interrupted_as_files_are_put_aside_has_said_so(
    valkey: Valkey, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in _files(data_dir):
        file.write_text("garbage")
    spawn = Valkey._spawn

    def interrupted(engine: Valkey, port: int) -> None:
        if _put_aside(data_dir):
            raise KeyboardInterrupt
        spawn(engine, port)

    monkeypatch.setattr(Valkey, "_spawn", interrupted)
    with structlog.testing.capture_logs() as logs, pytest.raises(KeyboardInterrupt):
        valkey.start()
    assert [line["moved_to"] for line in logs if line["log_level"] == "warning"] == [
        str(path) for path in _put_aside(data_dir)
    ]


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs an account for Postgres")
def test_of_servers_that_start_at_once_one_makes_the_account_of_postgres() -> None:
    name = f"dsp-{os.getpid()}"
    barrier = threading.Barrier(4)

    def make() -> int:
        barrier.wait()
        return find_or_make_account(name).pw_uid

    try:
        with ThreadPoolExecutor(4) as pool:
            ids = set(pool.map(lambda _: make(), range(4)))
        assert ids == {pwd.getpwnam(name).pw_uid}
    finally:
        subprocess.run(["/usr/sbin/userdel", name], check=True)


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
