"""Engines for the whole session, a database of its own for each test, and servers as processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import jwt
import psutil
import pytest
import redis.asyncio

from dispatcher.embedded.engines import Engines, EngineUrls, stop_left_behind
from dispatcher.ledger import migrate

JWT_SECRET = "a-secret-for-tests-with-more-than-32-bytes"
_TEMPLATE = "dispatcher_template"
_READY_S = 60.0
_databases = deque(range(1, 16))  # of the session's Valkey; 0 is left alone


def pytest_configure(config: pytest.Config) -> None:
    """Where nothing may be compiled into the tree, it is compiled into a directory of the run.

    Some hundred processes are started here; each would compile all that it imports, for a second.
    """
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        directory = tempfile.mkdtemp(prefix="dispatcher-bytecode-")
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = directory
        sys.dont_write_bytecode = False


def processes_of(directory: Path) -> list[psutil.Process]:
    """Live processes that work below `directory`: named in the command line, or their cwd."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if str(directory) in words or Path(process.cwd()).is_relative_to(directory):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_for_end(directory: Path, timeout_s: float = 5.0) -> list[psutil.Process]:
    """What still works below `directory` after `timeout_s` at most; empty is what one wants."""
    deadline = time.monotonic() + timeout_s
    while (left := processes_of(directory)) and time.monotonic() < deadline:
        look_again_at = min(deadline, time.monotonic() + 0.2)  # for what they have started
        while any(_lives(process) for process in left) and time.monotonic() < look_again_at:
            time.sleep(0.01)
    return left


def _lives(process: psutil.Process) -> bool:
    # Not psutil.wait_procs, which would take the status of a child from its Popen.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def make_token(sub: str, role: str, **claims: Any) -> str:
    """A token that servers started by `serve` accept; `claims` replace or add to the usual ones."""
    now = int(time.time())
    usual = {"sub": sub, "role": role, "aud": "dispatcher", "iat": now, "exp": now + 3_600}
    return jwt.encode({**usual, **claims}, JWT_SECRET, algorithm="HS256")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty directory for embedded engines; whatever still runs there afterwards is stopped.

    Not below pytest's own directory, which other users (root's Postgres) may not pass.
    """
    directory = Path(tempfile.mkdtemp(prefix="dispatcher-test-"))
    try:
        yield directory
    finally:
        left = processes_of(directory)
        if left:
            stop_left_behind(directory)
            left = wait_for_end(directory)
        shutil.rmtree(directory)
        assert not left, f"left behind: {left}"


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Path]:
    """What a first start makes of a Postgres' directory, stopped."""
    directory = Path(tempfile.mkdtemp(prefix="dispatcher-cluster-"))
    with Engines(directory, redis=False):
        pass
    yield directory / "postgres"
    shutil.rmtree(directory)


@pytest.fixture
def started_before(data_dir: Path, _cluster: Path) -> None:
    """For tests that are not about the first start of engines: spares `data_dir` the initdb."""
    # Not shutil, which would not keep the owner.
    subprocess.run(["cp", "-pR", str(_cluster), str(data_dir / "postgres")], check=True)


@pytest.fixture(scope="session")
def engines() -> Iterator[EngineUrls]:
    """One Valkey and one Postgres for the session; not for tests of durability (fsync is off)."""
    directory = Path(tempfile.mkdtemp(prefix="dispatcher-tests-"))
    session_engines = Engines(directory)
    try:
        yield session_engines.start()
    finally:
        session_engines.stop()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
async def admin(engines: EngineUrls) -> AsyncIterator[asyncpg.Connection]:
    """A connection that may make databases."""
    connection = await asyncpg.connect(engines.database_url)
    for setting in ("fsync", "full_page_writes"):
        await connection.execute(f"ALTER SYSTEM SET {setting} = off")
    await connection.execute("SELECT pg_reload_conf()")
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
async def template(engines: EngineUrls, admin: asyncpg.Connection) -> str:
    """Name of a migrated database that nobody is connected to."""
    await admin.execute(f"CREATE DATABASE {_TEMPLATE}")
    await migrate.up(_url_of(engines, _TEMPLATE))
    return _TEMPLATE


@pytest.fixture
async def database_url(
    engines: EngineUrls, admin: asyncpg.Connection, template: str
) -> AsyncIterator[str]:
    """A migrated, empty database for this test alone."""
    async for url in _database(engines, admin, template):
        yield url


@pytest.fixture
async def empty_database_url(engines: EngineUrls, admin: asyncpg.Connection) -> AsyncIterator[str]:
    """A database without any migration, for this test alone."""
    async for url in _database(engines, admin, "template0"):
        yield url


async def _database(engines: EngineUrls, admin: asyncpg.Connection, template: str) -> AsyncIterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _url_of(engines, name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _url_of(engines: EngineUrls, name: str) -> str:
    return engines.database_url.replace("@/dispatcher?", f"@/{name}?")


@pytest.fixture
async def redis_url(engines: EngineUrls) -> AsyncIterator[str]:
    """An empty logical database for this test alone; channels of pub/sub are shared by all."""
    number = _databases.popleft()
    url = f"{engines.redis_url.removesuffix('/0')}/{number}"
    client = redis.asyncio.Redis.from_url(url)
    await client.flushdb()
    yield url
    await client.flushdb()
    await client.aclose()
    _databases.append(number)


@dataclass
class Server:
    """A `dispatcher serve` of its own process, which has said that it is ready."""

    process: subprocess.Popen[str]
    data_dir: Path
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)
    redis_url: str = ""
    database_url: str = ""

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def log_lines(self) -> list[str]:
        """What it has written to stderr."""
        return self.log.read_text().splitlines()

    def kill9(self) -> None:
        """Kill the server process itself; embedded engines stay."""
        self.process.kill()
        self.process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Ask it to stop and wait; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, timeout_s)


class Serve:
    """Starts servers: `server = await serve("--workers", "2", env={"DISPATCHER_…": "…"})`.

    By default on the session's engines, in the databases of this test; with `embedded=True` on
    engines of its own below `data_dir`. A value of None in `env` takes a variable away.
    """

    def __init__(self, redis_url: str, database_url: str, data_dir: Path, logs: Path) -> None:
        self._redis_url = redis_url
        self._database_url = database_url
        self._data_dir = data_dir
        self._logs = logs
        self.servers: list[Server] = []

    async def __call__(
        self, *args: str, env: Mapping[str, str | None] | None = None, embedded: bool = False
    ) -> Server:
        variables: dict[str, str | None] = {
            **{name: value for name, value in os.environ.items() if "DISPATCHER_" not in name},
            "DISPATCHER_PORT": "0",
            "DISPATCHER_DATA_DIR": str(self._data_dir),
            "DISPATCHER_JWT_SECRET": JWT_SECRET,
            "DISPATCHER_REDIS_URL": None if embedded else self._redis_url,
            "DISPATCHER_DATABASE_URL": None if embedded else self._database_url,
            **(env or {}),
        }
        given = {name: value for name, value in variables.items() if value is not None}
        log = self._logs / f"server-{len(self.servers)}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "dispatcher", "serve", *args],
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        server = Server(process, self._data_dir, log)
        self.servers.append(server)
        assert process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), _READY_S)
        assert line.startswith("ready "), f"{line!r}, status {process.poll()}: {log.read_text()}"
        server.ready = json.loads(line.removeprefix("ready "))
        # A URL that was given is shown without its password.
        server.redis_url = given.get("DISPATCHER_REDIS_URL", server.ready["redis_url"])
        server.database_url = given.get("DISPATCHER_DATABASE_URL", server.ready["database_url"])
        return server


@pytest.fixture
async def serve(
    redis_url: str, database_url: str, data_dir: Path, tmp_path: Path
) -> AsyncIterator[Serve]:
    """The way to start servers; all of them are stopped at the end, and must leave nothing."""
    factory = Serve(redis_url, database_url, data_dir, tmp_path)
    try:
        yield factory
    finally:
        for server in factory.servers:
            await server.stop()
            assert server.process.stdout is not None
            server.process.stdout.close()
