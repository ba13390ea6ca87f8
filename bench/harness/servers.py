"""Starts and stops the servers that are measured: the dispatcher with its engines, and its rivals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from harness import engines
from harness.cpu_usage import MeasuredProcesses
from harness.interruption import signals_deferred

BENCH = Path(__file__).parent.parent
# At least 32 bytes (RFC 7518, 3.2). It protects only a server that lives for one run.
SECRET = "bench-bench-bench-bench-bench-bench"
READY_S = 180.0

# Every check stays on. The limits have the highest value that the settings take, since a few hundred
# drivers do the work of a city here. Presence and positions outlive the run, so that drivers who wait
# for the next round are not taken offline.
SERVER_SETTINGS = {
    "DISPATCHER_LIMIT_TRIP_ACCEPT": "100000/60",
    "DISPATCHER_LIMIT_TRIP_CANCEL": "100000/60",
    "DISPATCHER_LIMIT_LOCATION_UPDATE": "100000/60",
    "DISPATCHER_LIMIT_GENERAL": "100000/60",
    "DISPATCHER_LIMIT_ANONYMOUS": "100000/60",
    "DISPATCHER_LIMIT_CONNECTION": "100000/1",
    "DISPATCHER_MAX_CONNECTIONS_PER_IP": "1000000",
    "DISPATCHER_PRESENCE_TTL_S": "3600",
    "DISPATCHER_PRESENCE_GRACE_S": "3600",
    "DISPATCHER_FIX_MAX_AGE_S": "3600",
}


@dataclass(slots=True)
class Server:
    """A running server, started here or found at a URL."""

    url: str
    secret: str
    redis_url: str | None = None
    database_url: str | None = None
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    data_dir: Path | None = None
    processes: MeasuredProcesses = field(default_factory=lambda: MeasuredProcesses(None))
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self.log is not None and self.log.exists():
            tail = self.log.read_bytes()[-2000:].decode(errors="replace")
            print(f"the end of the server's log:\n{tail}", file=sys.stderr)
        self.stop()

    def stop(self) -> None:
        if self.process is not None:
            _stop(self.process)
        if self._folder is not None:
            self._folder.cleanup()


def start_dispatcher(
    *,
    options: list[str] | None = None,
    environment: dict[str, str] | None = None,
    data_dir: Path | None = None,
) -> Server:
    """`dispatcher serve` on a free port, with engines of its own below a temporary folder."""
    settings = SERVER_SETTINGS | (environment or {})
    # Whatever interrupts the start, neither the server nor its folder is left behind.
    with contextlib.ExitStack() as undo:
        folder = None
        if data_dir is None:
            folder = tempfile.TemporaryDirectory(prefix="dispatcher-bench-", ignore_cleanup_errors=True)
            undo.callback(folder.cleanup)
            data_dir = Path(folder.name)
            data_dir.chmod(0o755)  # an embedded Postgres that root starts runs as another user
        command = [sys.executable, "-m", "dispatcher", "serve", "--port", "0"]
        command += ["--data-dir", str(data_dir / "data"), *(options or [])]
        log = data_dir / "server.log"
        process, ready = _spawn(command, {**settings, "DISPATCHER_JWT_SECRET": SECRET}, log)
        undo.callback(_stop, process)
        # A URL that was given is shown without its password.
        redis_url = settings.get("DISPATCHER_REDIS_URL", ready["redis_url"])
        database_url = settings.get("DISPATCHER_DATABASE_URL", ready["database_url"])
        # A script looks into one Redis, and into none of a cluster.
        redis_url = None if "+" in redis_url else redis_url
        server = Server(
            url=ready["url"],
            secret=SECRET,
            redis_url=redis_url,
            database_url=database_url,
            process=process,
            log=log,
            data_dir=data_dir,
            processes=MeasuredProcesses(
                process.pid,
                engines.redis_pid(redis_url) if redis_url else None,
                engines.postmaster_pid(database_url),
            ),
            _folder=folder,
        )
        undo.pop_all()
    return server


def start_rival(name: str, *arguments: str, beside: Server) -> Server:
    """`bench/rivals/NAME.py`, on the engines of `beside`."""
    command = [sys.executable, str(BENCH / "rivals" / f"{name}.py"), *arguments]
    folder = beside.data_dir or Path(tempfile.gettempdir())
    log = folder / f"{name}.log"
    process, ready = _spawn(command, {"BENCH_JWT_SECRET": beside.secret}, log)
    return Server(
        url=ready["url"],
        secret=beside.secret,
        redis_url=beside.redis_url,
        database_url=ready.get("database_url", beside.database_url),
        process=process,
        log=log,
        processes=MeasuredProcesses(process.pid, beside.processes.redis, beside.processes.postgres),
    )


def running_at(url: str, secret: str, redis_url: str | None, database_url: str | None) -> Server:
    """A server that someone else started. CPU is accounted for if it runs on this machine."""
    port = int(url.rsplit(":", 1)[1].strip("/"))
    return Server(
        url=url,
        secret=secret,
        redis_url=redis_url,
        database_url=database_url,
        processes=MeasuredProcesses(
            _listener(port),
            engines.redis_pid(redis_url) if redis_url else None,
            engines.postmaster_pid(database_url) if database_url else None,
        ),
    )


def _listener(port: int) -> int | None:
    with contextlib.suppress(psutil.AccessDenied):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port:
                return connection.pid
    return None


def _spawn(
    command: list[str], settings: dict[str, str], log: Path
) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Start, and wait for the line `ready {json}`. Output goes to files: a pipe could fill up."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DISPATCHER_")}
    out = log.with_suffix(".out")
    process: subprocess.Popen[bytes] | None = None
    try:
        with out.open("wb") as stdout, log.open("wb") as stderr, signals_deferred():
            process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, env=inherited | settings, start_new_session=True
            )
        ready = _wait_ready(process, out)
    except BaseException:  # also where the script is interrupted
        if process is not None:
            _stop(process)
        raise
    if ready is None:
        _stop(process)
        said = log.read_text()[-3000:] + out.read_text()[-1000:]
        raise RuntimeError(f"{' '.join(command)} did not get ready:\n{said}")
    return process, ready


def _wait_ready(process: subprocess.Popen[bytes], out: Path) -> dict[str, Any] | None:
    """What the line says; None if the process ended or took too long."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        for line in out.read_bytes().splitlines(keepends=True):
            if line.startswith(b"ready {") and line.endswith(b"\n"):
                ready: dict[str, Any] = json.loads(line[6:])
                return ready
        if process.poll() is not None:
            break
        time.sleep(0.05)
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
