"""The embedded Postgres: reached by a unix socket that only its owner can enter, and durable."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import stat
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final
from urllib.parse import quote

from dispatcher.embedded.packages import postgres_programs
from dispatcher.embedded.postgres_account import prepare_account
from dispatcher.embedded.process import POLL_S, STOP_TIMEOUT_S, EngineError, EngineProcess, run_tool

_DATABASE: Final = "dispatcher"
_START_TIMEOUT_S: Final = 60.0  # recovery after a crash reads the log since the last checkpoint
_RESPAWN_PAUSE_S: Final = 0.05
#: Each with its wait in s. SIGINT is Postgres' "fast" shutdown, which ends sessions; SIGQUIT its
#: "immediate" one, which leaves a recovery to the next start.
#: A socket's path may have 104 bytes on macOS and 108 on Linux; the name of the file takes 15.
_MAX_SOCKET_DIRECTORY_BYTES: Final = 80

# Settings of durability keep their defaults, which are on. Postgres trusts whoever connects, but
# only through the unix socket, whose directory has mode 0700; there is no TCP port.
_SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class Postgres:
    """One Postgres below `directory`; start() finds a running one or spawns it."""

    name: Final = "Postgres"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = directory.with_name("postgres.log")
        self._pid_file = directory / "postmaster.pid"
        self._socket_directory = _socket_directory_for(directory)
        self._programs = postgres_programs()
        self._account: pwd.struct_passwd | None = None  # None: this process' own
        self.process: EngineProcess | None = None

    @property
    def url(self) -> str:
        """`postgresql://` URL over the unix socket, as asyncpg and psql take it."""
        return f"postgresql://postgres@/{_DATABASE}?host={quote(str(self._socket_directory))}"

    def find(self) -> EngineProcess | None:
        """The process that works on this directory, whoever started it."""
        return EngineProcess.find("postgres", str(self._directory), self._log)

    def launch(self) -> None:
        """Begin to start it; waits only if the directory has to be made first."""
        self._account = prepare_account(self._directory.parent) if os.geteuid() == 0 else None
        if not self._directory.exists():
            self._make_cluster()
        self._make_socket_directory()
        self.process = self.find()
        if self.process is None:
            # No Postgres works here, so a pid file is what a crash left. The process id in it may
            # by now be another program's, or a zombie's, and Postgres would refuse to start.
            self._pid_file.unlink(missing_ok=True)
            (self._socket_directory / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
            self._spawn()

    def wait(self) -> None:
        """Wait until it takes connections and the database exists.

        Raises EngineError, which shows the end of its log.
        """
        if self.process is None:
            raise EngineError("Postgres was not launched")
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._takes_connections():
            if time.monotonic() > deadline:
                raise EngineError(f"Postgres does not become ready:\n{self.process.log_tail()}")
            if not self.process.alive():
                # Children of a killed Postgres take a moment to notice that they are alone, and a
                # Postgres that was running when it was found may have been about to stop.
                still_in_use = "is still in use" in self.process.log_tail()
                if not self.process.was_running and not still_in_use:
                    raise EngineError(f"Postgres did not start:\n{self.process.log_tail()}")
                time.sleep(_RESPAWN_PAUSE_S)
                self._spawn()
            time.sleep(POLL_S)
        self._ensure_database()

    def start(self) -> str:
        """Launch, wait, and return the URL."""
        self.launch()
        self.wait()
        return self.url

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it with a fast shutdown, or after `timeout_s` by force. Does nothing if it is gone."""
        process = self.process or self.find()
        if process is not None:
            process.stop(signal.SIGINT, timeout_s)
        self.process = None
        if self._socket_directory != self._directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)

    def _spawn(self) -> None:
        sockets = str(self._socket_directory).replace('"', '""')
        command = [str(self._programs / "postgres"), "-D", str(self._directory)]
        command += ["-c", f'unix_socket_directories="{sockets}"']
        self.process = EngineProcess.spawn(
            command, cwd=self._directory, log=self._log, account=self._account
        )

    def _takes_connections(self) -> bool:
        """Whether the pid file says so: its first line is the process id, its eighth the state."""
        try:
            lines = self._pid_file.read_text().splitlines()
        except FileNotFoundError:
            return False
        return (
            len(lines) >= 8
            and self.process is not None
            and lines[0].strip() == str(self.process.pid)
            and lines[7].strip() == "ready"
        )

    def _ensure_database(self) -> None:
        server = ["--host", str(self._socket_directory), "--username", "postgres"]
        if self._run("psql", "--no-psqlrc", *server, "--command", "", _DATABASE).returncode:
            made = self._run("createdb", *server, _DATABASE)
            if made.returncode:
                raise EngineError(f"the database {_DATABASE} cannot be made: {made.stderr.strip()}")

    def _make_cluster(self) -> None:
        """Run initdb in a draft beside the directory, then rename the draft.

        So an initdb that is killed leaves no directory that looks whole.
        """
        for abandoned in self._directory.parent.glob("postgres.new.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        draft = self._directory.with_name(f"postgres.new.{os.getpid()}")
        draft.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(draft, self._account.pw_uid, self._account.pw_gid)
        options = [f"--set={name}={value}" for name, value in _SETTINGS.items()]
        # The built-in locale sorts the same on every machine and needs no locale installed.
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        authentication = ["--auth-local=trust", "--auth-host=reject", "--username=postgres"]
        made = self._run(
            "initdb",
            *["--encoding=UTF8", "--no-instructions", *locale, *authentication, *options],
            *["--pgdata", str(draft)],
        )
        if made.returncode:
            raise EngineError(f"initdb failed: {made.stdout}{made.stderr}")
        draft.rename(self._directory)

    def _run(self, program: str, *arguments: str) -> CompletedProcess[str]:
        command = [str(self._programs / program), *arguments]
        return run_tool(command, cwd=self._directory.parent, account=self._account)

    def _make_socket_directory(self) -> None:
        path = self._socket_directory
        if path == self._directory:
            return
        owner = self._account.pw_uid if self._account else os.geteuid()
        try:
            path.mkdir(mode=0o700)
            os.chown(path, owner, -1)
        except FileExistsError:
            # /tmp is open to every user of the machine: someone may have made it before us.
            status = path.lstat()
            private = not status.st_mode & 0o077
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or not private:
                raise EngineError(f"{path} belongs to someone else; remove it") from None


def _socket_directory_for(directory: Path) -> Path:
    """Where the unix socket is: in the data directory itself, or else in one below /tmp.

    The second where the path is too long for a socket, or has a comma, which separates hosts in a
    URL.
    """
    path = os.fsencode(directory)
    if len(path) <= _MAX_SOCKET_DIRECTORY_BYTES and b"," not in path:
        return directory
    digest = hashlib.sha256(path).hexdigest()[:16]
    return Path("/tmp") / f"dispatcher-{digest}"  # noqa: S108  checked in _make_socket_directory
