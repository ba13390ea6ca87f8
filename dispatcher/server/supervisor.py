"""`dispatcher serve`: engines, checks, migrations, the port, the processes, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import structlog
import uvloop
from pydantic import SecretStr

from dispatcher.config import Settings, SettingsError, load_settings
from dispatcher.embedded.engines import Engines, EngineUrls, development_secret
from dispatcher.observe import logs
from dispatcher.server.preflight import check_and_migrate
from dispatcher.server.process_pool import run_workers

_log = structlog.get_logger("dispatcher")

_LOOK_S = 0.5  # time between looks whether an engine died
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  listened on, never connected to


def serve(settings: Settings) -> None:
    """Run the server until SIGINT or SIGTERM; prints `ready {json}` on stdout once it serves.

    Raises SettingsError, EngineError, MigrationError or ServerError if it cannot start.
    """
    logs.configure(settings)
    uvloop.run(_with_signals(lambda stop: _serve(settings, stop)))


def work() -> None:
    """Run one of several server processes; its settings come through the environment.

    Its standard input is a pipe from the supervisor. The end of file there means that the
    supervisor is gone, even by SIGKILL, and that this process must be too.
    """
    settings = load_settings()
    logs.configure(settings)
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    sock = bind(settings.host, settings.port, shared=True)

    def on_ready() -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    uvloop.run(_with_signals(lambda stop: _run_app(settings, sock, on_ready, stop)))


def complete(settings: Settings, urls: EngineUrls) -> Settings:
    """Settings with the embedded engines' URLs and a secret, where they were not given.

    Raises SettingsError if nothing says how tokens are to be checked.
    """
    keys = settings.jwt_secret or settings.jwt_public_key_file or settings.jwt_jwks_file
    secret = settings.jwt_secret
    if not keys:
        if settings.redis_url and settings.database_url:
            raise SettingsError(
                "DISPATCHER_JWT_SECRET: must be set, or DISPATCHER_JWT_PUBLIC_KEY_FILE, or "
                "DISPATCHER_JWT_JWKS_FILE; one is only made up for embedded engines"
            )
        secret = SecretStr(development_secret(settings.data_dir))
    return settings.model_copy(
        update={
            "redis_url": settings.redis_url or urls.redis_url,
            "database_url": settings.database_url or urls.database_url,
            "jwt_secret": secret,
        }
    )


def bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """A bound socket that does not listen yet; `shared` lets other sockets of this user join.

    Raises SettingsError if the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(f"DISPATCHER_HOST: {host} is not an address: {error}") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise SettingsError(f"DISPATCHER_PORT: {port} on {host} cannot be had: {reason}") from None
    return sock


async def _with_signals(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run `main` with an event that the signals set; a second signal changes nothing."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # under nohup it stays ignored
        loop.add_signal_handler(signal.SIGHUP, stop.set)
    await main(stop)


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    engines = Engines(
        settings.data_dir,
        redis=settings.redis_url is None,
        postgres=settings.database_url is None,
    )
    try:
        starting = asyncio.create_task(asyncio.to_thread(engines.start))
        await asyncio.sleep(0)
        try:
            if settings.workers == 1:
                _import_app()  # takes as long as the engines do, so both at once
        finally:
            urls = await starting
        complete_settings = complete(settings, urls)
        await check_and_migrate(complete_settings)
        if not stop.is_set():
            await _serve_on(complete_settings, settings, engines, stop)
    finally:
        await asyncio.to_thread(engines.stop)


async def _serve_on(settings: Settings, given: Settings, engines: Engines, stop: asyncio.Event) -> None:
    """Bind, run the server processes and keep the engines alive until `stop`."""
    # Without SO_REUSEPORT first: another server's port must be refused, not joined.
    sock = bind(settings.host, settings.port, shared=False)
    port = sock.getsockname()[1]

    def on_ready() -> None:
        _print_ready(settings, given, port)

    keeper = asyncio.create_task(_keep_engines(engines, stop))
    try:
        if settings.workers == 1:
            await _run_app(settings, sock, on_ready, stop)
        else:
            sock.close()
            sock = bind(settings.host, port, shared=True)  # never listens: it keeps the port ours
            await run_workers(settings, port, on_ready, stop)
    finally:
        stop.set()
        sock.close()
        await keeper


async def _run_app(
    settings: Settings, sock: socket.socket, on_ready: Callable[[], None], stop: asyncio.Event
) -> None:
    await _import_app().run(settings, sock, on_ready, stop)


def _import_app() -> ModuleType:
    """The server proper; a supervisor of several workers never needs it."""
    return importlib.import_module("dispatcher.app")


async def _keep_engines(engines: Engines, stop: asyncio.Event) -> None:
    """Start an embedded engine again that was killed, until `stop`."""
    while not stop.is_set():
        try:
            for name in await asyncio.to_thread(engines.revive):
                _log.error("Embedded engine died and was started again", engine=name)
        except Exception:
            _log.exception("Embedded engine cannot be started again")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _LOOK_S)


def _exit_at_end_of_input() -> None:
    # A thread, and not the event loop, so that it works however busy the loop is. The supervisor
    # was killed, so a drain would be against engines and a port that the next server may own.
    # Not sys.stdin, whose lock a daemon thread would still hold when the interpreter ends.
    while os.read(0, 1024):
        pass
    os._exit(1)


def _print_ready(settings: Settings, given: Settings, port: int) -> None:
    """The one line on stdout. Shows the password of embedded engines, never one that was given."""
    host = _WILDCARDS.get(settings.host, settings.host)
    redis_url, database_url = settings.redis_url or "", settings.database_url or ""
    line = {
        "url": f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",
        "redis_url": _without_password(redis_url) if given.redis_url else redis_url,
        "database_url": _without_password(database_url) if given.database_url else database_url,
        "pid": os.getpid(),
        "data_dir": str(settings.data_dir.expanduser().resolve()),
    }
    sys.stdout.write(f"ready {json.dumps(line)}\n")
    sys.stdout.flush()


def _without_password(url: str) -> str:
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@", 1) if password else url
