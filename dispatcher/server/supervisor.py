"""`dispatcher serve`: engines, checks, migrations, the port, the processes, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Final

import structlog
from pydantic import SecretStr

from dispatcher.config import Settings, SettingsError, shown_url
from dispatcher.core.stop_signal import StopSignal
from dispatcher.embedded.engines import Engines, EngineUrls, development_secret
from dispatcher.observe import logs
from dispatcher.server.preflight import check_and_migrate, check_files
from dispatcher.server.process import import_app, run_app, run_until_signal
from dispatcher.server.process_pool import ProcessPool
from dispatcher.web.listening import METRICS, bind_metrics, bind_socket, kept_for_workers

_log = structlog.get_logger("dispatcher")

_REVIVE_INTERVAL_S: Final = 0.5  # how soon an engine that died is noticed
#: Seconds after the drain window by when an engine that is just being started is no longer waited for,
#: and by when the engines have stopped.
_REVIVED_S: Final = 4.0
_ENGINES_STOPPED_S: Final = 4.7
#: How a URL goes on after its scheme where it names no user.
_PASSWORD_ALONE: Final = re.compile(r":[^@/]*@")
#: Addresses that mean "all of this machine", each with one that a client can connect to.
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def serve(settings: Settings) -> None:
    """Run the server until SIGINT or SIGTERM; prints `ready {json}` on stdout once it serves.

    Raises SettingsError, EngineError, MigrationError or ServerError if it cannot start.
    """
    logs.configure(settings)

    async def supervise(stop: StopSignal) -> None:
        await Supervisor(settings, stop).run()

    run_until_signal(supervise, drain_s=settings.drain_s)


class Supervisor:
    """One `dispatcher serve`, from the start of its engines to their end.

    `given` are the settings of the operator, which may leave the engines to the supervisor; `stop`
    ends the server when it is set.
    """

    def __init__(self, given: Settings, stop: StopSignal) -> None:
        self._given = given
        self._stop = stop
        self._engines = Engines(
            given.data_dir,
            redis=given.redis_url is None,
            postgres=given.database_url is None,
        )

    async def run(self) -> None:
        """Start the engines, check them, serve until `stop`, and stop the engines."""
        try:
            urls = await self._start_engines()
            settings = complete_settings(self._given, urls)
            # What refuses the start comes before the migrations, which other servers would see.
            check_files(settings)
            # Not shared, so that the port of another server is refused and not joined.
            with bind_socket(settings.host, settings.port, shared=False) as sock:
                await self._stop.interrupt(check_and_migrate(settings))
                if not self._stop.is_set():
                    await self._serve(settings, sock)
        finally:
            await asyncio.to_thread(self._engines.stop, self._stop.remaining_s(_ENGINES_STOPPED_S))

    async def _start_engines(self) -> EngineUrls:
        starting = asyncio.create_task(asyncio.to_thread(self._engines.start))
        await asyncio.sleep(0)  # lets the thread start
        try:
            if self._given.workers == 1:
                import_app()  # takes as long as the engines do, so both happen at once
        finally:
            urls = await starting
        return urls

    async def _serve(self, settings: Settings, sock: socket.socket) -> None:
        """Run the server processes on a bound socket and keep the engines alive until `stop`."""
        port = sock.getsockname()[1]

        def on_ready() -> None:
            self._print_ready(settings, port)

        reviving = asyncio.create_task(self._revive_engines())
        try:
            if settings.workers == 1:
                await run_app(settings, sock, on_ready, self._stop)
            else:
                with _addresses_of_workers(settings, sock):
                    await ProcessPool(settings, port, on_ready, self._stop).run()
        finally:
            self._stop.set()
            await self._stop.finish(reviving, _REVIVED_S)

    async def _revive_engines(self) -> None:
        """Start embedded engines again that died, until `stop`."""
        while not self._stop.is_set():
            try:
                for name in await asyncio.to_thread(self._engines.revive):
                    _log.error("Embedded engine died and was started again", engine=name)
            except Exception:
                _log.exception("Embedded engine cannot be started again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REVIVE_INTERVAL_S):
                    await self._stop.wait()

    def _print_ready(self, settings: Settings, port: int) -> None:
        """Print the one line on stdout.

        It shows the passwords of embedded engines, which nobody could know otherwise, and never one
        that the operator gave.
        """
        host = _WILDCARDS.get(settings.host, settings.host)
        redis_url, database_url = settings.redis_url or "", settings.database_url or ""
        line = {
            "url": f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",
            "redis_url": shown_redis_url(redis_url) if self._given.redis_url else redis_url,
            "database_url": shown_url(database_url) if self._given.database_url else database_url,
            "pid": os.getpid(),
            "data_dir": str(settings.data_dir.expanduser().resolve()),
        }
        sys.stdout.write(f"ready {json.dumps(line)}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def _addresses_of_workers(settings: Settings, sock: socket.socket) -> Iterator[None]:
    """The workers share the port, and the address of metrics; both stay ours where all of them die.

    Raises SettingsError if another process was faster.
    """
    with contextlib.ExitStack() as kept:
        kept.enter_context(kept_for_workers(sock))
        if settings.metrics_address is not None:
            metrics = bind_metrics(settings.metrics_address, shared=False)
            kept.enter_context(kept_for_workers(metrics, METRICS))
        yield


def complete_settings(given: Settings, urls: EngineUrls) -> Settings:
    """`given`, with the embedded engines' URLs and the development secret where they are missing.

    Raises SettingsError if nothing says how tokens are to be checked.
    """
    secret = given.jwt_secret
    if not (secret or given.jwt_public_key_file or given.jwt_jwks_file):
        if given.redis_url and given.database_url:
            raise SettingsError(
                "DISPATCHER_JWT_SECRET: must be set, or DISPATCHER_JWT_PUBLIC_KEY_FILE, or "
                "DISPATCHER_JWT_JWKS_FILE; one is only made up for embedded engines"
            )
        secret = SecretStr(development_secret(given.data_dir))
    return given.model_copy(
        update={
            "redis_url": given.redis_url or urls.redis_url,
            "database_url": given.database_url or urls.database_url,
            "jwt_secret": secret,
        }
    )


def shown_redis_url(url: str) -> str:
    """A Redis URL without its password, as `redis-cli -u` takes it once that is put back.

    Where the URL has a password and names no user, `default` is meant, and has to be said:
    `redis-cli` would take it for a user of no name.
    """
    scheme, separator, rest = url.partition("://")
    return shown_url(f"{scheme}{separator}default{rest}" if _PASSWORD_ALONE.match(rest) else url)
