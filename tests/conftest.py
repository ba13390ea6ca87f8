"""Fixtures: engines for the whole session, a database of its own for each test, servers to start."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import subprocess
import tempfile
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from dispatcher.embedded.engines import Engines, EngineUrls, stop_left_behind
from dispatcher.ledger import migrate
from tests.harness.bytecode import keep_bytecode
from tests.harness.least_privilege import IS_ON, RESTRICTED, make_roles
from tests.harness.servers import Serve, processes_of, wait_for_end
from tests.harness.valkey_nodes import ValkeyCluster

_TEMPLATE = "dispatcher_template"
_databases = deque(range(1, 16))  # of the session's Valkey; 0 is left alone


def pytest_configure(config: pytest.Config) -> None:
    """Prepare what all workers of a run share."""
    # What is imported and collected stays: to look for garbage amid it is a third of the collection.
    gc.disable()
    if not hasattr(config, "workerinput"):
        config.add_cleanup(keep_bytecode())
    os.environ.setdefault("FAULTS_SEED", str(secrets.randbelow(1_000_000)))  # workers inherit it


def pytest_collection_finish() -> None:
    """Look for garbage as a server does, and not among the tests themselves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as in dispatcher/__main__.py
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the seed of the faults, also where all went well and the output of tests is not shown."""
    seed = os.environ["FAULTS_SEED"]
    terminalreporter.write_line(
        f"FAULTS_SEED={seed} repeats the faults of tests/faults/test_short_run.py"
    )


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty directory for embedded engines. A test that leaves a process there fails.

    It is not below pytest's own directory, which the account of root's Postgres may not pass.
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
    """The directory of a Postgres that was started once and stopped."""
    directory = Path(tempfile.mkdtemp(prefix="dispatcher-cluster-"))
    with Engines(directory, redis=False):
        pass
    yield directory / "postgres"
    shutil.rmtree(directory)


@pytest.fixture
def started_before(data_dir: Path, _cluster: Path) -> None:
    """Put a made database into `data_dir`, for tests that are not about the first start of engines."""
    # cp keeps the owner, which shutil does not.
    subprocess.run(["cp", "-pR", str(_cluster), str(data_dir / "postgres")], check=True)


@pytest.fixture(scope="session")
def engines() -> Iterator[EngineUrls]:
    """One Valkey and one Postgres for the session; no use for tests of durability: fsync is off."""
    directory = Path(tempfile.mkdtemp(prefix="dispatcher-tests-", dir=_memory()))
    session_engines = Engines(directory)
    try:
        yield session_engines.start()
    finally:
        session_engines.stop()
        shutil.rmtree(directory)


def _memory() -> Path | None:
    """Where files are kept in memory, if that is to be had and has room for the engines of all workers.

    A database a test is 300 files: on a disk, to make and drop them costs five times the CPU time.
    """
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free if os.access(shared, os.W_OK) else 0
    return shared if room >= 2 * 1024**3 else None


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
    if IS_ON:
        await make_roles(_url_of(engines, _TEMPLATE))
        await RESTRICTED.set_up(engines)
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
    # Copied, not logged: the log of so many databases would take gigabytes.
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
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


@pytest.fixture(scope="session")
async def _valkey_cluster() -> AsyncIterator[ValkeyCluster]:
    directory = Path(tempfile.mkdtemp(prefix="dispatcher-valkeys-"))
    nodes = ValkeyCluster(directory)
    try:
        await nodes.ready()
        yield nodes
    finally:
        nodes.end()
        shutil.rmtree(directory)


@pytest.fixture
async def cluster(_valkey_cluster: ValkeyCluster) -> AsyncIterator[ValkeyCluster]:
    """Three primaries with a replica each, empty. Who breaks a node heals it."""
    await _valkey_cluster.clear()
    yield _valkey_cluster
    await _valkey_cluster.heal()


@pytest.fixture
async def serve(
    redis_url: str, database_url: str, data_dir: Path, tmp_path: Path
) -> AsyncIterator[Serve]:
    """Starts servers and stops them all at the end; `data_dir` fails if they leave anything."""
    factory = Serve(redis_url, database_url, data_dir, tmp_path)
    try:
        yield factory
    finally:
        for server in factory.servers:
            await server.stop()
            assert server.process.stdout is not None
            server.process.stdout.close()
