"""The data directory: what lies where in it, and the lock that one server at a time holds."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

import psutil

from dispatcher.config import SettingsError

_LOCK_WAIT_S: Final = 10.0  # longer than a guard takes to end the engines of a killed server
_LOCK_POLL_S: Final = 0.02


class DataDirectory:
    """The files and directories below `path`; none of them has to exist."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.lock_file = self.path / "lock"  # holds the process id of the server that locked it
        self.valkey = self.path / "valkey"
        self.postgres = self.path / "postgres"  # Postgres' log is beside it
        self.jwt_secret = self.path / "jwt_secret"

    def make(self) -> None:
        """Make the directory if it is missing. Raises SettingsError if it cannot be made."""
        # Root's Postgres runs as another user, who has to pass through to its own directory.
        mode = 0o711 if os.geteuid() == 0 else 0o700
        try:
            self.path.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"DISPATCHER_DATA_DIR: {self.path} cannot be made: {error}") from None

    def take_lock(self, *, owner: str) -> int:
        """Lock the directory and note `owner`, a process id, or empty if no server has it.

        Returns the descriptor of the locked file; the kernel frees the lock when it is closed or
        the process ends. Raises SettingsError at once if a live server holds the lock. A holder
        that is no server is stopping what a killed one left; it is given 10 s.
        """
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(descriptor, 20, 0).decode().strip()
                if (holder and psutil.pid_exists(int(holder))) or time.monotonic() > deadline:
                    os.close(descriptor)
                    raise SettingsError(
                        f"DISPATCHER_DATA_DIR: {self.path} is in use by process {holder or '?'}; "
                        "stop it, or choose another directory"
                    ) from None
                time.sleep(_LOCK_POLL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
        return descriptor
