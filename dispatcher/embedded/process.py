"""The process of an embedded engine: started here, or left running by a server that was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from pwd import struct_passwd
from typing import Final

import psutil

#: How long an engine may take to stop by itself.
STOP_TIMEOUT_S: Final = 20.0
_KILL_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.005  # engines are ready within tens of milliseconds, so looking often costs little
_LOG_TAIL_BYTES: Final = 2_000  # as much of an engine's log as an error shows

# Engines see neither the server's secrets nor PG* variables that would redirect them.
_INHERITED_VARIABLES: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")


class EngineError(Exception):
    """An embedded engine did not start or stop; the message says which, and shows its log's end."""


class EngineProcess:
    """A running engine, in a session of its own: the terminal's Ctrl-C reaches the server only."""

    def __init__(
        self,
        process: psutil.Process,
        log: Path,
        log_start: int,
        popen: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.pid: int = process.pid
        #: Whether somebody else started it, so that this process is not its parent.
        self.was_running = popen is None
        self._process = process
        self._popen = popen
        self._log = log
        self._log_start = log_start

    @classmethod
    def find(cls, program: str, argument: str, log: Path) -> EngineProcess | None:
        """The live process of `program` that was started with exactly this `argument`, if any.

        Looks at command lines, not at a pid file: after a crash or in a new container the number
        in a pid file may be another program's.
        """
        matches: dict[int, psutil.Process] = {}
        for process in psutil.process_iter(["cmdline", "status"]):
            command = process.info["cmdline"]
            if (
                command
                and Path(command[0]).name == program
                and argument in command[1:]
                and process.info["status"] != psutil.STATUS_ZOMBIE
            ):
                matches[process.pid] = process
        for process in matches.values():
            try:
                if process.ppid() not in matches:  # its own forks carry the same command line
                    return cls(process, log, _size(log))
            except psutil.NoSuchProcess:
                continue
        return None

    @classmethod
    def spawn(
        cls, command: Sequence[str], *, cwd: Path, log: Path, account: struct_passwd | None
    ) -> EngineProcess:
        """Start `command` as `account` (None: the caller's), its output appended to `log`.

        Raises EngineError if it cannot be run.
        """
        log_start = _size(log)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            popen = subprocess.Popen(  # noqa: S603  the programs come from installed packages
                command,
                cwd=cwd,
                env=_engine_environment(),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                umask=0o077,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        except OSError as error:
            raise EngineError(f"{command[0]} cannot be run: {error}") from error
        finally:
            os.close(descriptor)
        return cls(psutil.Process(popen.pid), log, log_start, popen)

    def alive(self) -> bool:
        """Whether it runs; false as soon as it is dead, even if it is still a zombie."""
        if self._popen is not None:
            return self._popen.poll() is None
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def stop(self, number: signal.Signals, timeout_s: float) -> None:
        """Send a signal that asks the process to end, and kill it and its children after `timeout_s`.

        Raises EngineError if it outlives even that.
        """
        try:
            self._process.send_signal(number)
            if self._ends_within(timeout_s):
                return
            # Its children end by themselves once it is gone, unless they are stopped as it may be.
            for process in (self._process, *self._process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        except psutil.NoSuchProcess:
            pass
        if not self._ends_within(_KILL_TIMEOUT_S):
            raise EngineError(f"process {self.pid} did not stop; its log is {self._log}")

    def _ends_within(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    @property
    def exit_code(self) -> int | None:
        """What it ended with, a signal's number below zero; None while it runs, or where somebody else
        started it."""
        return self._popen.poll() if self._popen is not None else None

    def log_tail(self, max_bytes: int = _LOG_TAIL_BYTES) -> str:
        """The end of what it has logged since it was found or started."""
        with self._log.open("rb") as file:
            file.seek(max(self._log_start, _size(self._log) - max_bytes))
            return file.read().decode(errors="replace").strip()


def run_tool(
    command: Sequence[str], *, cwd: Path, account: struct_passwd | None
) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself, in the environment of the engines, and capture its output.

    The caller looks at the status. Raises EngineError if the program cannot be run.
    """
    try:
        return subprocess.run(  # noqa: S603  the programs come from an installed package
            command,
            cwd=cwd,
            env=_engine_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be run: {error}") from error


def _engine_environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
    return {**inherited, "LC_ALL": "C", "TZ": "UTC"}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
