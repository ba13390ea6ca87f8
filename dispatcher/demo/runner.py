"""Runs the demo: starts server and city, shows what happens, and checks every invariant."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console

from dispatcher.config import Settings, shown_url
from dispatcher.demo.city_plan import CityPlan
from dispatcher.demo.invariants import check_invariants
from dispatcher.demo.pickups import BUNDLED_BOROUGHS, BUNDLED_PICKUPS, read_pickups
from dispatcher.demo.report import State
from dispatcher.demo.requests import issue_token
from dispatcher.demo.server import DemoError, Server, running_server, scaled_waves
from dispatcher.demo.view import View
from dispatcher.extras import require
from dispatcher.zones_file import load_zones

#: Length of a run where neither a number of trips nor a time was asked for.
_DEFAULT_MINUTES: Final = 2.0
#: Of the operator's token: as long as anybody keeps a demo.
_TOKEN_S: Final = 7 * 86_400
#: The last line of the city holds every answer that was given.
_MAX_LINE_BYTES: Final = 1 << 26


def run(
    settings: Settings,
    *,
    pickups: Path = BUNDLED_PICKUPS,
    limit: int | None = None,
    drivers: int = 300,
    speed: float = 60.0,
    minutes: float | None = None,
    keep: bool = False,
) -> int:
    """Replays pickups; returns the exit status: 0 if every invariant held, else 1.

    With `keep` the server stays up afterwards, with all that it holds, until Ctrl-C.

    Raises SettingsError for a wrong file or setting, or a missing extra, DemoError if server or city
    fail.
    """
    require("the demo", *_extras(settings, pickups))
    load_zones(settings.zones_file)
    begins, replayed = read_pickups(pickups, limit)
    if limit is None and minutes is None:
        minutes = _DEFAULT_MINUTES
    if minutes is not None:
        replayed = [p for p in replayed if p.after_s < minutes * 60 * speed]
    view = View(Console(), begins=begins, speed=speed, trips=len(replayed))

    def plan(server: Server) -> CityPlan:
        return CityPlan(
            url=server.url,
            server_pid=server.pid,
            secret=server.secret,
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            run=secrets.token_hex(4),
            pickups=[(p.after_s, p.lat, p.lng) for p in replayed],
            drivers=drivers,
            speed=speed,
            minutes=minutes,
            max_radius_m=max(wave.radius_m for wave in scaled_waves(speed)),
        )

    city = BUNDLED_BOROUGHS if pickups == BUNDLED_PICKUPS else None

    async def run_city() -> bool:
        with view:
            view.print_line(
                f"{len(replayed)} real pickups, {drivers} drivers, {speed:g} times real speed"
            )
            async with running_server(settings, speed, city) as server:
                places = where_to_look(server, settings)
                for line in places:
                    view.print_line(line)
                state = await _run_city_process(plan(server), view)
                answered = [(trip, version) for trip, version in state["outcome"]["answered"]]
                findings = await check_invariants(server.database_url, answered)
                view.close()
                view.report(state, findings)
                if keep:
                    view.print_line(f"kept with its data ({server.data_dir}) until Ctrl-C:")
                    for line in places:
                        view.print_line(line)
                    await _until_interrupted()
        return not state["mismatches"] and not any(finding.violations for finding in findings)

    try:
        return 0 if asyncio.run(run_city()) else 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 128 + signal.SIGINT


def _extras(settings: Settings, pickups: Path) -> list[str]:
    """The extras that a run takes: what the settings give is not embedded, and a map has areas."""
    extras = []
    if settings.redis_url is None or settings.database_url is None:
        extras.append("embedded")
    if settings.zones_file is None and pickups == BUNDLED_PICKUPS:
        extras.append("zones")
    return extras


def where_to_look(server: Server, settings: Settings) -> list[str]:
    """A link that opens the console signed in, and how to look inside both engines."""
    token = issue_token(
        server.secret, settings.jwt_audience, settings.jwt_issuer, "operator", "admin", _TOKEN_S
    )
    _, _, path = server.redis_url.partition("unix://")
    redis = f"-s {path.partition('?')[0]}" if path else f"-u '{server.redis_url}'"
    return [
        f"console: {server.url}/console#token={token}",
        f"redis:   redis-cli {redis}",
        f"sql:     psql '{shown_url(server.database_url)}'",
    ]


async def _until_interrupted() -> None:
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    try:
        await interrupted.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _run_city_process(plan: CityPlan, view: View) -> State:
    """Runs the city in a process of its own until it ends or Ctrl-C stops it; returns its last state."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher.demo",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, limit=_MAX_LINE_BYTES,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stdin = process.stdin
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stdin.write, b"stop\n")
    try:
        stdin.write(plan.encode())
        await stdin.drain()
        state: dict[str, Any] = {}
        async for line in process.stdout:
            state = orjson.loads(line)
            if "outcome" not in state:
                view.update(state)
        status = await process.wait()
        if "outcome" not in state:
            raise DemoError(f"the city ended with status {status}")
        if not state["replayed"]:
            raise DemoError("no driver could connect")
        return state
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
