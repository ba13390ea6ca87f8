"""Embedded engines below a data directory: a Valkey and a Postgres that nobody has to install.

Layout of the directory: `lock`, `valkey/`, `postgres/`, `postgres.log`, `jwt_secret`. A server
holds the lock for as long as it lives. Engines outlive a killed server; the next one on the same
directory takes them over, and if none comes, a guard ends them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from dispatcher.config import SettingsError
from dispatcher.embedded.guard import LOCK_FILE
from dispatcher.embedded.postgres import Postgres
from dispatcher.embedded.private_files import make_private
from dispatcher.embedded.valkey import Valkey

_LOCK_S = 10.0  # longer than a guard takes to end the engines of a killed server


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

    # Time to look at what a killed server left, or to start the next one.
    guard_grace_s = 30.0

    def __init__(self, data_dir: Path, *, redis: bool = True, postgres: bool = True) -> None:
        self._directory = data_dir.expanduser().resolve()
        self.valkey = Valkey(self._directory / "valkey") if redis else None
        self.postgres = Postgres(self._directory / "postgres") if postgres else None
        self._lock: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> EngineUrls:
        """Take over or start the engines, both at once, and wait until they answer.

        Raises SettingsError if a live server has the directory, EngineError if one does not start.
        """
        if self.valkey is None and self.postgres is None:
            return self.urls
        _make_data_dir(self._directory)
        self._lock = _take_lock(self._directory, owner=str(os.getpid()))
        try:
            self._start_engines()
            self._start_guard()
        except BaseException:
            self.stop()
            raise
        return self.urls

    @property
    def urls(self) -> EngineUrls:
        """The URLs; valid once the engines were started."""
        return EngineUrls(
            self.valkey.url if self.valkey else "", self.postgres.url if self.postgres else ""
        )

    def stop(self) -> None:
        """Stop Valkey, then Postgres, and give the directory back. Does nothing when stopped."""
        if self._lock is None:
            return
        try:
            self._stop_engines()
        finally:
            if self._guard is not None:
                self._guard.communicate(b"stopped")
                self._guard = None
            os.close(self._lock)
            self._lock = None

    def restart(self) -> EngineUrls:
        """Stop the engines and start them again, at the same URLs unless the port was taken."""
        self._stop_engines()
        self._start_engines()
        return self.urls

    def revive(self) -> list[str]:
        """Start an engine again that died by itself; the names of those that had."""
        died = []
        for engine in (self.valkey, self.postgres):
            if engine is not None and engine.process is not None and not engine.process.alive():
                died.append(type(engine).__name__)
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

    def _start_engines(self) -> None:
        engines = [engine for engine in (self.valkey, self.postgres) if engine is not None]
        for engine in engines:
            engine.launch()
        for engine in engines:
            engine.wait()

    def _stop_engines(self) -> None:
        with contextlib.ExitStack() as stack:  # the second is stopped even if the first will not
            if self.postgres is not None:
                stack.callback(self.postgres.stop)
            if self.valkey is not None:
                stack.callback(self.valkey.stop)

    def _start_guard(self) -> None:
        arguments = [str(self._directory), str(os.getpid()), str(self.guard_grace_s)]
        self._guard = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-m", "dispatcher.embedded.guard", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def running_database_url(data_dir: Path) -> str | None:
    """URL of the embedded Postgres of `data_dir` if one is running there, else None."""
    directory = data_dir.expanduser().resolve()
    postgres = Postgres(directory / "postgres")
    return postgres.url if postgres.find() is not None else None


def stop_left_behind(data_dir: Path) -> None:
    """Stop what a killed server left running on `data_dir`.

    Raises SettingsError if a live server has the directory.
    """
    directory = data_dir.expanduser().resolve()
    # Under no owner: a server that starts meanwhile waits for the end of this, and a guard that
    # still waits for its time sees that the directory is no longer its server's.
    lock = _take_lock(directory, owner="") if directory.exists() else None
    try:
        Valkey(directory / "valkey").stop()
        Postgres(directory / "postgres").stop()
    finally:
        if lock is not None:
            os.close(lock)


def development_secret(data_dir: Path) -> str:
    """The HS256 secret of this data directory: made once, readable by its owner only."""
    directory = data_dir.expanduser().resolve()
    _make_data_dir(directory)
    return make_private(directory / "jwt_secret", secrets.token_urlsafe(48))


def _make_data_dir(directory: Path) -> None:
    # Root's Postgres runs as another user, which has to pass through to its own directory.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"DISPATCHER_DATA_DIR: {directory} cannot be made: {error}") from None


def _take_lock(directory: Path, *, owner: str) -> int:
    """Descriptor of the locked file; the kernel frees the lock when the process ends."""
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode().strip()
            # Held without a live owner: what a killed server left is being stopped.
            if (holder and psutil.pid_exists(int(holder))) or time.monotonic() > deadline:
                os.close(descriptor)
                raise SettingsError(
                    f"DISPATCHER_DATA_DIR: {directory} is in use by process {holder or '?'}; "
                    "stop it, or choose another directory"
                ) from None
            time.sleep(0.02)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, owner.encode(), 0)
    return descriptor
