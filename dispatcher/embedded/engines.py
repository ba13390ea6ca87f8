"""Embedded engines below a data directory: a Valkey and a Postgres that nobody has to install.

A server holds the directory's lock for as long as it lives. Engines outlive a server that was
killed; the next one on the same directory takes them over, and if none comes, a guard ends them.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dispatcher.embedded.data_directory import DataDirectory
from dispatcher.embedded.packages import valkey_program
from dispatcher.embedded.postgres import Postgres
from dispatcher.embedded.private_files import make_private
from dispatcher.embedded.process import STOP_TIMEOUT_S
from dispatcher.embedded.valkey import Valkey


@dataclass(frozen=True)
class EngineUrls:
    """Where the engines are; empty for an engine that is not embedded."""

    redis_url: str
    database_url: str


class Engines:
    """The embedded engines of one data directory, either or both of them.

    One object at a time holds a directory. `valkey` and `postgres` can be stopped and started on
    their own, which is how tests take one away; their URLs stay the same.
    """

    #: How long engines outlive a server that was killed: enough to look into them, or to start the
    #: next server.
    guard_grace_s = 30.0

    def __init__(self, data_dir: Path, *, redis: bool = True, postgres: bool = True) -> None:
        self._directory = DataDirectory(data_dir)
        self.valkey = Valkey(self._directory.valkey) if redis else None
        self.postgres = Postgres(self._directory.postgres) if postgres else None
        self._engines = [engine for engine in (self.valkey, self.postgres) if engine is not None]
        self._lock: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> EngineUrls:
        """Take over or start the engines, both at once, and wait until they answer.

        Raises SettingsError if a live server has the directory or an engine is not installed,
        EngineError if one does not start.
        """
        if not self._engines:
            return self.urls
        if self.valkey is not None:
            valkey_program()  # before anything is made; Postgres has looked for its own already
        self._directory.make()
        self._lock = self._directory.take_lock(owner=str(os.getpid()))
        try:
            for engine in self._engines:
                engine.launch()
            for engine in self._engines:
                engine.wait()
            self._start_guard()
        except BaseException:
            self.stop()
            raise
        return self.urls

    @property
    def urls(self) -> EngineUrls:
        """The URLs; valid once the engines were started."""
        return EngineUrls(
            redis_url=self.valkey.url if self.valkey else "",
            database_url=self.postgres.url if self.postgres else "",
        )

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the engines, both at once, and give the directory back. Does nothing when stopped.

        What has not stopped after `timeout_s` is killed; it recovers when it is started again.
        """
        if self._lock is None:
            return
        try:
            self._stop_engines(timeout_s)
        finally:
            if self._guard is not None:
                self._guard.communicate(b"stopped")
                self._guard = None
            os.close(self._lock)
            self._lock = None

    def revive(self) -> list[str]:
        """Start engines again that died by themselves; returns the names of those that had."""
        died = []
        for engine in self._engines:
            if engine.process is not None and not engine.process.alive():
                died.append(engine.name)
                engine.start()
        return died

    def __enter__(self) -> EngineUrls:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _stop_engines(self, timeout_s: float) -> None:
        with ThreadPoolExecutor() as threads:
            stops = [threads.submit(engine.stop, timeout_s) for engine in self._engines]
        for stop in stops:
            stop.result()

    def _start_guard(self) -> None:
        arguments = [str(self._directory.lock_file), str(os.getpid()), str(self.guard_grace_s)]
        self._guard = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-m", "dispatcher.embedded.guard", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def running_database_url(data_dir: Path) -> str | None:
    """URL of the embedded Postgres of `data_dir` if one is running there, else None."""
    postgres = Postgres(DataDirectory(data_dir).postgres)
    return postgres.url if postgres.find() is not None else None


def running_redis_url(data_dir: Path) -> str | None:
    """URL of the embedded Valkey of `data_dir` if one is running there, else None."""
    return Valkey(DataDirectory(data_dir).valkey).running_url()


def stop_left_behind(data_dir: Path) -> None:
    """Stop what a killed server left running on `data_dir`.

    Raises SettingsError if a live server has the directory.
    """
    directory = DataDirectory(data_dir)
    # The lock names no owner, so a server that starts meanwhile waits for the end of this, and a
    # guard that still waits for its time sees that the directory is no longer its server's.
    lock = directory.take_lock(owner="") if directory.path.exists() else None
    try:
        Valkey(directory.valkey).stop()
        Postgres(directory.postgres).stop()
    finally:
        if lock is not None:
            os.close(lock)


def development_secret(data_dir: Path) -> str:
    """The HS256 secret of this data directory: made once, readable by its owner only.

    Raises SettingsError if the directory cannot be made.
    """
    directory = DataDirectory(data_dir)
    directory.make()
    return make_private(directory.jwt_secret, secrets.token_urlsafe(48))
