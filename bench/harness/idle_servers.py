"""Servers that have nothing to do: what many of them and many zones cost, and how they come back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from redis import Redis

from harness import engines
from harness.encoding import token
from harness.servers import Server, start_dispatcher


@dataclass(frozen=True, slots=True)
class IdleCost:
    """What all servers together cost while nothing happens."""

    servers: int
    zones: int
    ready_s: float
    server_share: float
    all_servers_share: float
    redis_share: float
    postgres_share: float
    scripts_per_s: float
    infos_per_s: float
    commands_per_s: float
    warm_s: float | None

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@contextlib.contextmanager
def started(servers: int, zones: int, environment: dict[str, str] | None = None) -> Any:
    """So many servers of so many zones, on the engines of the first one; with the seconds it took."""
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "zones.toml"
        path.write_text("".join(f"[zones.z{n}]\n" for n in range(zones)))
        settings = {"DISPATCHER_ZONES_FILE": str(path), "DISPATCHER_LOG_LEVEL": "warning"}
        settings |= environment or {}
        began = time.monotonic()
        first = stack.enter_context(start_dispatcher(environment=settings))
        assert first.redis_url is not None
        assert first.database_url is not None
        shared = {"DISPATCHER_REDIS_URL": first.redis_url, "DISPATCHER_DATABASE_URL": first.database_url}
        others = [
            stack.enter_context(start_dispatcher(environment=settings | shared))
            for _ in range(servers - 1)
        ]
        yield [first, *others], time.monotonic() - began


def measure_idle(servers: int, zones: int, seconds: float, *, empties: bool, rest_s: float) -> IdleCost:
    """Idle servers for some seconds, and how long an emptied Redis takes to be warm again."""
    with started(servers, zones) as (running, ready_s):
        first = running[0]
        with engines.redis_client(first.redis_url) as client:
            time.sleep(rest_s)
            before, cpu_before, began = _calls(client), _cpu(running), time.monotonic()
            time.sleep(seconds)
            after, cpu_after, passed = _calls(client), _cpu(running), time.monotonic() - began
            warm_s = _warm_again(client, zones + 1) if empties else None
    rates = {name: (after[name] - before.get(name, 0)) / passed for name in after}
    server, redis, postgres = (
        (end - start) / passed for start, end in zip(cpu_before, cpu_after, strict=True)
    )
    scripts = sum(rate for name, rate in rates.items() if name.startswith("eval"))
    return IdleCost(
        servers=servers, zones=zones, ready_s=ready_s, server_share=server / servers,
        all_servers_share=server, redis_share=redis, postgres_share=postgres, scripts_per_s=scripts,
        infos_per_s=rates.get("info", 0.0), commands_per_s=sum(rates.values()), warm_s=warm_s,
    )  # fmt: skip


def _calls(client: Redis) -> dict[str, int]:
    """How often each command was called, since the server began to count."""
    return {
        name.removeprefix("cmdstat_"): int(of["calls"])
        for name, of in client.info("commandstats").items()
    }


def _cpu(running: list[Server]) -> tuple[float, float, float]:
    readings = [server.processes.cpu() for server in running]
    # Each reading of a server has the engines, which are those of the first.
    return sum(each.server for each in readings), readings[0].redis, readings[0].postgres


def _warm_again(client: Redis, zones: int) -> float:
    """Seconds from an emptied Redis until every zone is loaded."""
    began = time.monotonic()
    client.flushall()
    names = [f"dsp:{{z{n}}}:epoch" for n in range(zones - 1)] + ["dsp:{default}:epoch"]
    while client.exists(*names) < zones:
        time.sleep(0.05)
        if time.monotonic() - began > 300:
            raise TimeoutError("zones are not warm")
    return time.monotonic() - began


@dataclass(frozen=True, slots=True)
class MessagesHeard:
    """How many messages about users each of two servers got; the second one has no sockets."""

    trips: int
    with_sockets: int
    without_sockets: int


def measure_messages(trips: int) -> MessagesHeard:
    """Trips whose customers and drivers all have their sockets on the first of two servers."""
    with started(2, 1) as ((first, second), _):
        return asyncio.run(_lead_trips(first, second, trips))


async def _lead_trips(first: Server, second: Server, trips: int) -> MessagesHeard:
    async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:

        async def post(role: str, subject: str, path: str, body: Any) -> None:
            headers = {"Authorization": f"Bearer {token(first.secret, role, subject)}"}
            async with session.post(second.url + path, json=body, headers=headers) as answer:
                answer.raise_for_status()

        for role in ("customer", "driver"):
            for number in range(trips):
                headers = {"Authorization": f"Bearer {token(first.secret, role, f'{role}-{number}')}"}
                socket = await stack.enter_async_context(
                    session.ws_connect(f"{first.url}/ws", headers=headers)
                )
                await socket.receive()
        for number in range(trips):
            driver = f"driver-{number}"
            online = {"is_online": True, "availability_status": "available", "zone": "default"}
            await post("driver", driver, "/api/driver/availability", online)
            trip = f"default_{number}"
            place = {"pickup": {"lat": 40.7, "lng": -74.0}, "zone": "default", "trip_request_id": trip}
            await post("customer", f"customer-{number}", "/api/customer/ride/create", place)
            for action in ("accept", "arrive", "start", "complete"):
                body = {"action": action, "trip_request_id": trip}
                await post("driver", driver, "/api/driver/ride/trip-action", body)
        heard = [await _user_messages(session, server) for server in (first, second)]
    return MessagesHeard(trips, *heard)


async def _user_messages(session: aiohttp.ClientSession, server: Server) -> int:
    async with session.get(f"{server.url}/metrics") as answer:
        text = await answer.text()
    wanted = 'dispatcher_channel_messages_total{about="users"} '
    return int(float(next(line for line in text.splitlines() if line.startswith(wanted)).split()[-1]))
