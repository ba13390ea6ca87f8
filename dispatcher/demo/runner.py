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

from dispatcher.config import Settings
from dispatcher.demo.city_plan import CityPlan
from dispatcher.demo.invariants import check_invariants
from dispatcher.demo.pickups import BUNDLED_PICKUPS, read_pickups
from dispatcher.demo.server import DemoError, Server, running_server, scaled_waves
from dispatcher.demo.view import State, View

#: Length of a run where neither a number of trips nor a time was asked for.
_DEFAULT_MINUTES: Final = 2.0
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
) -> int:
    """Replays pickups; returns the exit status: 0 if every invariant held, else 1.

    Raises SettingsError for a wrong file or setting, DemoError if server or city fail.
    """
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

    async def run_city() -> bool:
        with view:
            view.print_line(
                f"{len(replayed)} real pickups, {drivers} drivers, {speed:g} times real speed"
            )
            async with running_server(settings, speed) as server:
                view.print_line(f"server ready: {server.url}")
                state = await _run_city_process(plan(server), view)
                answered = [(trip, version) for trip, version in state["outcome"]["answered"]]
                findings = await check_invariants(server.database_url, answered)
        view.report(state, findings)
        return not state["mismatches"] and not any(finding.violations for finding in findings)

    try:
        return 0 if asyncio.run(run_city()) else 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 128 + signal.SIGINT


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
