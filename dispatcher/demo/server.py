"""Runs a server for the demo: a process of `dispatcher serve` with its own engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dispatcher.config import ENV_PREFIX, Settings, SettingsError
from dispatcher.core.limits import Rate
from dispatcher.core.zones import DEFAULT_WAVES, Matching, Wave
from dispatcher.embedded.engines import development_secret

#: The first start creates a database, which takes long on a slow disk.
_READY_S: Final = 120.0
_STOP_S: Final = 30.0
#: The port of `serve`, so that a link that was kept goes on working; another one where it is taken.
_USUAL_PORT: Final = 8080
_READY_LINE_BYTES: Final = 1 << 20
#: Wave deadlines shrink with the city's speed, but an app on a busy machine needs a second to answer.
_MIN_DEADLINE_FACTOR: Final = 0.1
#: The zones file takes no shorter rounds of matching.
_MIN_ROUND_S: Final = 0.5
#: Short, so that the demo sees absent drivers being taken offline.
PRESENCE_S: Final = 15
GRACE_S: Final = 5


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class PortTakenError(DemoError):
    """The server's port is another process's."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and what its clients need."""

    url: str
    database_url: str
    secret: str
    pid: int
    redis_url: str = ""
    data_dir: str = ""


@contextlib.asynccontextmanager
async def running_server(
    settings: Settings, speed: float, city: Path | None = None
) -> AsyncIterator[Server]:
    """Runs a server, in a temporary directory unless the settings name one.

    `city` is a GeoJSON file of the boroughs to show on a map.

    Raises SettingsError if its tokens cannot be signed here, DemoError if it does not start.
    """
    explicit = settings.model_fields_set
    if settings.jwt_secret is None and (settings.jwt_public_key_file or settings.jwt_jwks_file):
        raise SettingsError("DISPATCHER_JWT_SECRET: the demo signs its own tokens; set the secret")
    # Not below a private directory: the embedded Postgres of root runs as another user.
    scratch = Path(tempfile.mkdtemp(prefix="dispatcher-demo-"))
    data_dir = settings.data_dir if "data_dir" in explicit else scratch
    log = scratch / "server.log"
    try:
        if settings.jwt_secret is not None:
            secret = settings.jwt_secret.get_secret_value()
        else:
            secret = await asyncio.to_thread(development_secret, data_dir)
        overrides = _server_settings(settings, speed, scratch, city) | {
            "jwt_secret": secret,
            "data_dir": str(data_dir),
        }
        process, ready = await _started(overrides, log)
        try:
            yield Server(
                url=ready["url"],
                database_url=settings.database_url or ready["database_url"],
                secret=secret,
                pid=process.pid,
                redis_url=ready["redis_url"],
                data_dir=ready["data_dir"],
            )
        finally:
            await _stop(process)
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


def _server_settings(
    settings: Settings, speed: float, scratch: Path, city: Path | None
) -> dict[str, str]:
    """Settings for a city at `speed` times real time; explicit settings win."""
    explicit = settings.model_fields_set
    adapted = {
        "presence_ttl_s": str(PRESENCE_S),
        "presence_grace_s": str(GRACE_S),
        "log_level": "error",
        # A whole city calls from this one machine.
        "limit_connection": "off",
        "max_connections_per_ip": "1000000",
    }
    for name in ("trip_accept", "trip_cancel", "location_update", "general", "operator"):
        adapted[f"limit_{name}"] = str(_scaled_rate(getattr(settings, f"limit_{name}"), speed))
    adapted = {name: value for name, value in adapted.items() if name not in explicit}
    if settings.zones_file is None:
        file = scratch / "zones.toml"
        area = ""
        if city is not None:
            area = "city.geojson"
            (scratch / area).write_text(merged_outline(city))
        file.write_text(scaled_zones(speed, area))
        adapted["zones_file"] = str(file)
    if "port" in explicit:
        adapted["port"] = str(settings.port)
    return adapted | {"host": "127.0.0.1"}


async def _started(
    overrides: dict[str, str], log: Path
) -> tuple[asyncio.subprocess.Process, dict[str, str]]:
    """A server that serves, and its line of where; without a port, it has the usual one or a free one.

    Raises DemoError if it does not start.
    """
    if "port" in overrides:
        return await _start(overrides, log)
    if _is_free(_USUAL_PORT):
        try:
            return await _start(overrides | {"port": str(_USUAL_PORT)}, log)
        except PortTakenError:
            pass  # another process was faster than our server
    return await _start(overrides | {"port": "0"}, log)


async def _start(
    overrides: dict[str, str], log: Path
) -> tuple[asyncio.subprocess.Process, dict[str, str]]:
    with log.open("wb") as stderr:
        # A session of its own: Ctrl-C in the terminal stops the city first, and the server last.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dispatcher", "serve",
            env=os.environ | {ENV_PREFIX + name.upper(): value for name, value in overrides.items()},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
            start_new_session=True, limit=_READY_LINE_BYTES,
        )  # fmt: skip
    try:
        return process, await _wait_ready(process, log)
    except BaseException:
        await _stop(process)
        raise


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _scaled_rate(rate: Rate, speed: float) -> Rate:
    return Rate(min(100_000, max(rate.limit, round(rate.limit * speed))), rate.window_s)


def scaled_waves(speed: float) -> list[Wave]:
    """The default wave plan, with deadlines (s) shortened for a city at `speed` times real time."""
    factor = _deadline_factor(speed)
    return [Wave(wave.size, wave.radius_m, wave.deadline_s * factor) for wave in DEFAULT_WAVES]


def _deadline_factor(speed: float) -> float:
    return min(1.0, max(1 / speed, _MIN_DEADLINE_FACTOR))


def merged_outline(file: Path) -> str:
    """The features of a GeoJSON file as one geometry. Takes the extra `zones`."""
    import shapely  # noqa: PLC0415  the command imports this module before it knows of the extra
    from shapely.geometry import shape  # noqa: PLC0415

    features = json.loads(file.read_text())["features"]
    return str(shapely.to_geojson(shapely.union_all([shape(f["geometry"]) for f in features])))


def scaled_zones(speed: float, area: str = "") -> str:
    """The text of a zones file with those waves, and with rounds of matching as much shorter.

    `area` is a GeoJSON file beside it.
    """
    lines = [
        f"  {{ size = {w.size}, radius_m = {w.radius_m}, deadline_s = {w.deadline_s:.3f} }},"
        for w in scaled_waves(speed)
    ]
    outline = [f'area = "{area}"'] if area else []
    usual, factor = Matching(), _deadline_factor(speed)
    rounds = [
        f"match_every_s = {max(_MIN_ROUND_S, usual.every_s * factor):.3f}",
        f"match_head_start_s = {usual.head_start_s * factor:.3f}",
    ]
    return "\n".join(["[zones.default]", *outline, "waves = [", *lines, "]", *rounds, ""])


async def _wait_ready(process: asyncio.subprocess.Process, log: Path) -> dict[str, str]:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_READY_S):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b""
    if not line.startswith(b"ready "):
        last_lines = (await asyncio.to_thread(log.read_text, errors="replace")).splitlines()[-5:]
        told = [line.removeprefix("error: ") for line in last_lines]  # each line is one of ours as well
        taken = any(line.startswith("DISPATCHER_PORT: ") for line in told)
        kind = PortTakenError if taken else DemoError
        raise kind("\n".join(["the server did not start:", *told]))
    place: dict[str, str] = json.loads(line.removeprefix(b"ready "))
    return place


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
