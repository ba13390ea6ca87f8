"""What a round plays on: two servers, and behind proxies a Redis with a replica, and a Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import psutil
import redis.asyncio

from dispatcher.embedded.engines import Engines
from dispatcher.embedded.packages import valkey_program
from dispatcher.embedded.private_files import write_private
from dispatcher.embedded.valkey import Valkey
from dispatcher.live.keys import keys_of
from tests.faults.clock import Clock
from tests.faults.disk import Disk
from tests.faults.history import History
from tests.faults.intents import LEASE_S
from tests.faults.limits import LIMITS
from tests.faults.proxy import Proxy
from tests.harness.servers import Serve, Server

ZONES = ("default", "north")
_PASSWORD = "a-password-that-both-nodes-share"
_SOCKET = ".s.PGSQL.5432"
_WAVES = (
    "[{ size = 4, radius_m = 20000, deadline_s = 1 }, { size = 8, radius_m = 20000, deadline_s = 1 }]"
)
#: Times so short that every repair is due within a round. Faults last longer than the lease.
SETTINGS = {
    "CLAIM_LEASE_MS": str(round(LEASE_S * 1000)),
    "COMMIT_TIMEOUT_S": "1",
    "REQUEST_DEADLINE_S": "2",
    "SWEEP_INTERVAL_S": "0.2",
    "PRESENCE_TTL_S": "3",
    "PRESENCE_GRACE_S": "1",
    "POSITION_FLUSH_S": "0.3",
    "DRAIN_S": "0",
    **{f"LIMIT_{name.upper()}": f"{calls}/{window_s}" for name, (calls, window_s) in LIMITS.items()},
    "LIMIT_ANONYMOUS": "off",
}


class Node:
    """One Valkey that lives by `clock`, and a client that reaches it whatever the proxy does."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        directory.mkdir(mode=0o700)
        write_private(directory / "password", _PASSWORD)
        self.directory = directory
        self.valkey = Valkey(directory, clock.wrapper(valkey_program(), directory))

    async def start(self) -> None:
        await asyncio.to_thread(self.valkey.start)
        self.client = redis.asyncio.Redis.from_url(self.valkey.url, decode_responses=True)
        await self.client.config_set("masterauth", _PASSWORD)
        await self.client.config_set("repl-diskless-sync-delay", "0")

    async def kill(self) -> None:
        """Kills it, with all that it held."""
        assert self.valkey.process is not None
        os.kill(self.valkey.process.pid, signal.SIGKILL)
        await asyncio.to_thread(self.valkey.stop)
        await self.client.aclose()
        shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)

    async def stop(self) -> None:
        await self.client.aclose()
        await asyncio.to_thread(self.valkey.stop)

    @property
    def port(self) -> int:
        return int(self.client.connection_pool.connection_kwargs["port"])

    @property
    def pids(self) -> list[int]:
        assert self.valkey.process is not None
        return [self.valkey.process.pid]

    @property
    def is_alive(self) -> bool:
        return self.valkey.process is not None and self.valkey.process.alive()

    async def follow(self, other: Node) -> None:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(redis.exceptions.ConnectionError):  # it has just come back
                    await self.client.execute_command("REPLICAOF", "127.0.0.1", other.port)
                    return
                await asyncio.sleep(0.1)

    async def wait_until_followed(self) -> None:
        """Waits until this replica has what its primary has."""
        while (await self.client.info("replication")).get("master_link_status") != "up":
            await asyncio.sleep(0.02)


class Stage:
    """The engines and servers of one round: `async with Stage(directory, history) as stage`.

    With `small_disk`, the engines work on a disk of their own where this machine can have one.
    `cluster` is the directory of a Postgres that was started once and stopped; without it, one is made.
    A Redis that is silent for `redis_timeout_s` is away.
    """

    def __init__(
        self,
        directory: Path,
        history: History,
        *,
        small_disk: bool = False,
        cluster: Path | None = None,
        redis_timeout_s: float = 10.0,
    ) -> None:
        self._redis_timeout_s = redis_timeout_s
        self._directory = directory
        self._small_disk = small_disk
        self._cluster = cluster
        self.history = history
        self.disk = Disk(directory / "disk" if small_disk else directory)
        self.engines = Engines(self.disk.directory, redis=False)
        self.redis_clock = Clock(directory / "clock-of-redis")
        self.server_clocks = [Clock(directory / f"clock-of-server-{place}") for place in range(2)]
        self.proxy = Proxy()
        self.postgres_proxy = Proxy()
        self.servers: list[Server] = []
        self.database_url = ""
        self.redis_url = ""

    async def __aenter__(self) -> Stage:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        if self._small_disk:
            self.disk.directory.mkdir()
            self.disk.mount()
        if self._cluster is not None:
            # cp keeps the owner, which shutil does not.
            copied = ["cp", "-pR", str(self._cluster), str(self.disk.directory / "postgres")]
            await asyncio.to_thread(subprocess.run, copied, check=True)
        urls = await asyncio.to_thread(self.engines.start)
        self.database_url = urls.database_url
        self.primary, self.replica = (
            Node(self.disk.directory / name, self.redis_clock) for name in ("node-a", "node-b")
        )
        await asyncio.gather(self.primary.start(), self.replica.start())
        await self.replica.follow(self.primary)
        port = await self.proxy.open(self.primary.port)
        self.redis_url = f"redis://default:{_PASSWORD}@127.0.0.1:{port}/0"
        database_url = await self._open_postgres_proxy()
        zones = self._directory / "zones.toml"
        zones.write_text(
            "".join(f"[zones.{zone}]\nwaves = {_WAVES}\nmatch_every_s = 1\n" for zone in ZONES)
        )
        self._env = {f"DISPATCHER_{name}": value for name, value in SETTINGS.items()}
        self._env["DISPATCHER_ZONES_FILE"] = str(zones)
        self._env["DISPATCHER_REDIS_TIMEOUT_S"] = str(self._redis_timeout_s)
        self._serve = Serve(self.redis_url, database_url, self._directory, self._directory)
        self._ports = [_free_port(), _free_port()]
        self.servers = list(await asyncio.gather(self._serve_on(0), self._serve_on(1)))

    async def _open_postgres_proxy(self) -> str:
        """Puts a proxy before Postgres; returns the URL that leads through it."""
        directory = self._directory / "proxy"
        directory.mkdir(mode=0o700)
        sockets = parse_qs(urlsplit(self.database_url).query)["host"][0]
        await self.postgres_proxy.open(Path(sockets) / _SOCKET, directory / _SOCKET)
        return self.database_url.replace(quote(sockets), quote(str(directory)))

    async def _serve_on(self, place: int, halt_at: str = "") -> Server:
        env = {**self._env, **self.server_clocks[place].environment}
        env |= {"DISPATCHER_PORT": str(self._ports[place]), "DISPATCHER_HALT_AT": halt_at}
        return await self._serve(env=env)

    async def _stop(self) -> None:
        for server in self._serve.servers if hasattr(self, "_serve") else []:
            server.kill9()
            assert server.process.stdout is not None
            server.process.stdout.close()
        await self.proxy.close()
        await self.postgres_proxy.close()
        for node in (self.primary, self.replica) if hasattr(self, "replica") else ():
            await node.stop()
        await asyncio.to_thread(self.engines.stop)
        self.disk.unmount()

    @property
    def urls(self) -> list[str]:
        """The servers' addresses, which outlive a restart."""
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def errors(self) -> list[str]:
        """What the servers logged as errors, each once, with the end of its traceback; outages are
        warnings."""
        lines = [line for server in self._serve.servers for line in server.log_lines()]
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return sorted(
            {
                "\n".join((str(record["event"]), *str(record.get("exception", "")).splitlines()[-9:]))
                for record in records
                if record["level"] == "error"
            }
        )

    def kill_servers(self) -> None:
        """Kills both servers at once."""
        for server in self.servers:
            server.kill9()

    async def restart_server(self, place: int, *, halt_at: str = "") -> None:
        """Kills a server and starts it again on its port; with `halt_at` its changes come to that point."""
        self.servers[place].kill9()
        self.servers[place] = await self._serve_on(place, halt_at)

    async def wait_until_halted(self, place: int, *, within_s: float) -> None:
        """Waits until a change of a server has come to its point, and some more had the time to."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not any('"halted"' in line for line in self.servers[place].log_lines()):
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.3)

    async def crash_postgres(self, away_s: float) -> None:
        """Kills Postgres with all its sessions, and starts it again: it recovers what was committed."""
        for pid in self.postgres_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(away_s)
        await self.revive()

    async def revive(self) -> None:
        """Starts engines again that have died, with what their files hold.

        A Valkey that cannot write its files after a full copy tries for ten seconds, and then dies.
        """
        await asyncio.to_thread(self.engines.revive)
        async with asyncio.timeout(60):
            while True:
                for node in (self.primary, self.replica):
                    if not node.is_alive:
                        await node.client.aclose()
                        await node.start()
                self.proxy.point(self.primary.port)
                with contextlib.suppress(redis.exceptions.RedisError, TimeoutError):
                    await self.primary.client.ping()
                    await self.replica.follow(self.primary)
                    return
                await asyncio.sleep(0.1)

    def postgres_pids(self) -> list[int]:
        """Postgres and its sessions."""
        assert self.engines.postgres is not None and self.engines.postgres.process is not None
        parent = psutil.Process(self.engines.postgres.process.pid)
        return [parent.pid, *(child.pid for child in parent.children(recursive=True))]

    async def read_streams(self) -> None:
        """Notes what the streams hold, as a consumer that is never late."""
        for zone in ZONES:
            self.history.read_stream(await self.primary.client.xrange(keys_of(zone).events))

    async def flush(self) -> None:
        """Empties Redis, and notes in the same step what the streams held."""
        pipeline = self.primary.client.pipeline(transaction=True)
        for zone in ZONES:
            pipeline.xrange(keys_of(zone).events)
        pipeline.flushall()
        streams: list[Any] = await pipeline.execute()
        for entries in streams[: len(ZONES)]:
            self.history.read_stream(entries)

    async def restart_empty(self) -> None:
        """Replaces Redis by an empty one behind the same address."""
        self.proxy.cut()
        await self.read_streams()
        await self.primary.kill()
        await self.primary.start()
        self.proxy.point(self.primary.port)
        await self.replica.follow(self.primary)

    async def fail_over(self, lost_s: float) -> None:
        """Cuts the replica off, lets `lost_s` of writes pass it by, and puts it in the primary's place."""
        await asyncio.wait_for(self.replica.wait_until_followed(), 10)
        await self.replica.client.execute_command("REPLICAOF", "NO", "ONE")
        await asyncio.sleep(lost_s)
        self.proxy.cut()
        await self.read_streams()
        await self.primary.kill()
        self.primary, self.replica = self.replica, self.primary
        self.proxy.point(self.primary.port)
        await self.replica.start()
        await self.replica.follow(self.primary)


def _free_port() -> int:
    # Below the kernel's own range, so that no outgoing connection takes it while a server is down; by
    # chance, so that another run on this machine does not try the same.
    while True:
        port = secrets.choice(range(10_000, 20_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
