"""Servers as processes, tokens that they accept, and a look at what they leave running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import psutil

from tests.harness.least_privilege import RESTRICTED

JWT_SECRET = "a-secret-for-tests-with-more-than-32-bytes"
_READY_S = 60.0


@dataclass
class Server:
    """A process of `dispatcher serve` that has said that it is ready."""

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
        """The lines that it has written to stderr."""
        return self.log.read_text().splitlines()

    def kill9(self) -> None:
        """Kill the server process itself; embedded engines stay."""
        self.process.kill()
        self.process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Ask it to stop, wait, and return its exit status."""
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
            "DISPATCHER_REDIS_TIMEOUT_S": "10",  # slow is not dead, unless a test is about that
            "DISPATCHER_DATA_DIR": str(self._data_dir),
            "DISPATCHER_JWT_SECRET": JWT_SECRET,
            "DISPATCHER_REDIS_URL": None if embedded else RESTRICTED.redis_url(self._redis_url),
            "DISPATCHER_DATABASE_URL": None if embedded else RESTRICTED.database_url(self._database_url),
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


def make_token(sub: str, role: str, **claims: Any) -> str:
    """A token that servers started by `serve` accept; `claims` replace or add to the usual ones."""
    now = int(time.time())
    usual = {"sub": sub, "role": role, "aud": "dispatcher", "iat": now, "exp": now + 3_600}
    return jwt.encode({**usual, **claims}, JWT_SECRET, algorithm="HS256")


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


def workers_of(server: Server) -> list[psutil.Process]:
    """The live worker processes of a server with several."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just died
            if "_worker" in child.cmdline():
                found.append(child)
    return found


def wait_for_end(directory: Path, timeout_s: float = 5.0) -> list[psutil.Process]:
    """Wait until nothing works below `directory`, `timeout_s` at most; returns what still does."""
    deadline = time.monotonic() + timeout_s
    while (left := processes_of(directory)) and time.monotonic() < deadline:
        look_again_at = min(deadline, time.monotonic() + 0.2)  # they may have started others
        while any(_lives(process) for process in left) and time.monotonic() < look_again_at:
            time.sleep(0.01)
    return left


def _lives(process: psutil.Process) -> bool:
    # psutil.wait_procs would collect the status of a child, and its Popen would never learn it.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
