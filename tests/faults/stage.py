"""What a round plays on: two servers, a Redis with a replica behind a proxy, and a Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import redis.asyncio

from dispatcher.embedded.engines import Engines
from dispatcher.embedded.private_files import write_private
from dispatcher.embedded.valkey import Valkey
from dispatcher.live.keys import keys_of
from tests.faults.history import History
from tests.faults.intents import LEASE_S
from tests.faults.proxy import Proxy
from tests.harness.servers import Serve, Server

ZONES = ("default", "north")
_PASSWORD = "a-password-that-both-nodes-share"
_WAVES = (
    "[{ size = 4, radius_m = 20000, deadline_s = 1 }, { size = 8, radius_m = 20000, deadline_s = 1 }]"
)
#: Times so short that every repair is due within a round. Faults last longer than the lease.
_SETTINGS = {
    "CLAIM_LEASE_MS": str(round(LEASE_S * 1000)),
    "COMMIT_TIMEOUT_S": "1",
    "REQUEST_DEADLINE_S": "2",
    "SWEEP_INTERVAL_S": "0.2",
    "PRESENCE_TTL_S": "3",
    "PRESENCE_GRACE_S": "1",
    "POSITION_FLUSH_S": "0.3",
    "DRAIN_S": "0",
    "LIMIT_TRIP_ACCEPT": "off",
    "LIMIT_TRIP_CANCEL": "off",
    "LIMIT_LOCATION_UPDATE": "off",
    "LIMIT_GENERAL": "off",
    "LIMIT_ANONYMOUS": "off",
}


class Node:
    """One Valkey, and a client that reaches it whatever the proxy does."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        write_private(directory / "password", _PASSWORD)
        self.directory = directory
        self.valkey = Valkey(directory)

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

    async def follow(self, other: Node) -> None:
        await self.client.execute_command("REPLICAOF", "127.0.0.1", other.port)

    async def wait_until_followed(self) -> None:
        """Waits until this replica has what its primary has."""
        while (await self.client.info("replication")).get("master_link_status") != "up":
            await asyncio.sleep(0.02)


class Stage:
    """The engines and servers of one round: `async with Stage(directory, history) as stage`."""

    def __init__(self, directory: Path, history: History) -> None:
        self._directory = directory
        self.history = history
        self.engines = Engines(directory, redis=False)
        self.proxy = Proxy()
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
        urls = await asyncio.to_thread(self.engines.start)
        self.database_url = urls.database_url
        self.primary, self.replica = (Node(self._directory / name) for name in ("node-a", "node-b"))
        await asyncio.gather(self.primary.start(), self.replica.start())
        await self.replica.follow(self.primary)
        port = await self.proxy.open(self.primary.port)
        self.redis_url = f"redis://default:{_PASSWORD}@127.0.0.1:{port}/0"
        zones = self._directory / "zones.toml"
        zones.write_text("".join(f"[zones.{zone}]\nwaves = {_WAVES}\n" for zone in ZONES))
        self._env = {f"DISPATCHER_{name}": value for name, value in _SETTINGS.items()}
        self._env["DISPATCHER_ZONES_FILE"] = str(zones)
        self._serve = Serve(self.redis_url, self.database_url, self._directory, self._directory)
        self._ports = [_free_port(), _free_port()]
        self.servers = list(await asyncio.gather(self._serve_on(0), self._serve_on(1)))

    async def _serve_on(self, place: int) -> Server:
        port = str(self._ports[place])
        return await self._serve(env={**self._env, "DISPATCHER_PORT": port})

    async def _stop(self) -> None:
        for server in self._serve.servers if hasattr(self, "_serve") else []:
            server.kill9()
            assert server.process.stdout is not None
            server.process.stdout.close()
        await self.proxy.close()
        for node in (self.primary, self.replica) if hasattr(self, "replica") else ():
            await node.stop()
        await asyncio.to_thread(self.engines.stop)

    @property
    def urls(self) -> list[str]:
        """The servers' addresses, which outlive a restart."""
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def errors(self) -> list[str]:
        """What the servers logged as errors, each message once; outages are warnings."""
        lines = [line for server in self._serve.servers for line in server.log_lines()]
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return sorted({str(record["event"]) for record in records if record["level"] == "error"})

    def kill_servers(self) -> None:
        """Kills both servers at once."""
        for server in self.servers:
            server.kill9()

    async def restart_server(self, place: int) -> None:
        """Kills a server and starts it again on its port."""
        self.servers[place].kill9()
        # A server does not start without its engines; the supervisor of a real one tries again as well.
        self.servers[place] = await self._serve_on(place)

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
