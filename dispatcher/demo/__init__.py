"""`dispatcher demo`: a city against a server of its own, and whether every invariant held."""

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
from dispatcher.demo.city import Plan, plan_line
from dispatcher.demo.invariants import check_invariants
from dispatcher.demo.pickups import SHIPPED, read_pickups
from dispatcher.demo.server import DemoError, Server, serving, waves_at
from dispatcher.demo.view import State, View

__all__ = ["DemoError", "run"]

#: Where neither a number of trips nor a time was asked for: a look, not the whole evening.
_LOOK_MINUTES: Final = 2.0
#: The last line holds every answer that was given.
_LINE_BYTES: Final = 1 << 26


def run(
    settings: Settings,
    *,
    pickups: Path = SHIPPED,
    limit: int | None = None,
    drivers: int = 300,
    speed: float = 60.0,
    minutes: float | None = None,
) -> int:
    """Replays the pickups; returns the exit status: 0 if every invariant held, else 1.

    Raises SettingsError for a wrong file or setting, DemoError if server or city fail.
    """
    begins, places = read_pickups(pickups, limit)
    if limit is None and minutes is None:
        minutes = _LOOK_MINUTES
    if minutes is not None:
        places = [p for p in places if p.after_s < minutes * 60 * speed]
    view = View(Console(), begins=begins, speed=speed, trips=len(places))

    def plan(server: Server) -> Plan:
        return Plan(
            url=server.url,
            server_pid=server.pid,
            secret=server.secret,
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            run=secrets.token_hex(4),
            pickups=[(p.after_s, p.lat, p.lng) for p in places],
            drivers=drivers,
            speed=speed,
            minutes=minutes,
            reach_m=max(wave.radius_m for wave in waves_at(speed)),
        )

    async def whole() -> bool:
        with view:
            view.say(f"{len(places)} real pickups, {drivers} drivers, {speed:g} times real speed")
            async with serving(settings, speed) as server:
                view.say(f"server ready: {server.url}")
                state = await _live(plan(server), view)
                answered = [(trip, version) for trip, version in state["outcome"]["answered"]]
                findings = await check_invariants(server.database_url, answered)
        view.report(state, findings)
        return not state["mismatches"] and not any(finding.violations for finding in findings)

    try:
        return 0 if asyncio.run(whole()) else 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 128 + signal.SIGINT


async def _live(plan: Plan, view: View) -> State:
    """Runs the city in a process of its own until it ends, or Ctrl-C ends it; its last state."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher.demo",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, limit=_LINE_BYTES,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    orders = process.stdin
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, orders.write, b"stop\n")
    try:
        orders.write(plan_line(plan))
        await orders.drain()
        state: dict[str, Any] = {}
        async for line in process.stdout:
            state = orjson.loads(line)
            if "outcome" not in state:
                view.show(state)
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
