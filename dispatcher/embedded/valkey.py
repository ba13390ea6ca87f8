"""The embedded Valkey: loopback only, with a password of its own and an append-only file."""

from __future__ import annotations

import secrets
import signal
import socket
import time
from pathlib import Path
from typing import Final

from dispatcher.embedded.damaged_files import DamagedFiles, damage_in
from dispatcher.embedded.packages import valkey_program
from dispatcher.embedded.private_files import make_private, write_private
from dispatcher.embedded.process import POLL_S, STOP_TIMEOUT_S, EngineError, EngineProcess

_START_TIMEOUT_S: Final = 60.0  # a large append-only file takes a while to load
_MAX_START_ATTEMPTS: Final = 5  # on another port each, since ports are taken by others meanwhile
_PORTS: Final = range(20_000, 32_768)  # below the ephemeral ports of Linux and macOS

# maxmemory-policy: an evicted claim or trip would be a wrong answer.
# appendonly: the live state is still there after a restart, unless its file is damaged (see `wait`).
# save "": the append-only file is the only copy, so a stop is quick.
# auto-aof-rewrite-*: rewrites are rare, since a busy zone writes 64 MB, the default at which one
# starts, in seconds, and each takes most of a core.
# set-proc-title: EngineProcess.find looks for the configuration file in the command line.
_CONFIGURATION: Final = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{directory}"
maxmemory-policy noeviction
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 256mb
auto-aof-rewrite-percentage 200
rdbcompression no
save ""
daemonize no
set-proc-title no
"""


class _FilesDamaged(EngineError):
    """It ended before it answered, over its files: `reason` is the line of its log that says so."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Valkey:
    """One Valkey below `directory`; start() finds a running one or spawns it. `program` is the
    package's, unless another one is given."""

    name: Final = "Valkey"

    def __init__(self, directory: Path, program: Path | None = None) -> None:
        self._program = program  # None: the package's
        self._directory = directory
        self._log = directory / "valkey.log"
        self._configuration = directory / "valkey.conf"
        self._port_file = directory / "port"
        self._damaged_files = DamagedFiles(directory / "appendonlydir")
        self._port = 0
        self._password = ""
        self.process: EngineProcess | None = None

    @property
    def url(self) -> str:
        """`redis://` URL with the password; valid once it was started."""
        return f"redis://default:{self._password}@127.0.0.1:{self._port}/0"

    def find(self) -> EngineProcess | None:
        """The process that works on this directory, whoever started it."""
        return EngineProcess.find("valkey-server", str(self._configuration), self._log)

    def running_url(self) -> str | None:
        """The URL of the one that works on this directory, whoever started it; None where none does."""
        if self.find() is None or not self._port_file.exists():
            return None
        self._password = (self._directory / "password").read_text()
        self._port = int(self._port_file.read_text())
        return self.url

    def launch(self) -> None:
        """Begin to start it, on the port of last time if it is free; does not wait."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._password = make_private(self._directory / "password", secrets.token_urlsafe(32))
        last_port = int(self._port_file.read_text()) if self._port_file.exists() else None
        self.process = self.find()
        if self.process is not None and last_port is not None:
            self._port = last_port
        else:
            self._spawn(_free_port(last_port))

    def wait(self) -> None:
        """Wait until it answers. Raises EngineError, which shows the end of its log.

        A full disk or a crash of the machine may leave files that Valkey does not start from. Where its
        log says so they are put aside, as `appendonlydir.damaged-` with the time (the newest three are
        kept), and it starts empty: all that it holds is in Postgres, from where zones are loaded. Where
        it does not start empty either, or was killed as it started, the files stay.
        """
        try:
            self._wait()
        except _FilesDamaged as damaged:
            aside = self._damaged_files.put_aside(damaged.reason)
            try:
                self._spawn(self._port)
                self._wait()
            except EngineError:
                self._damaged_files.put_back(aside)
                raise damaged from None
            self._damaged_files.drop_old()

    def _wait(self) -> None:
        if self.process is None:
            raise EngineError("Valkey was not launched")
        deadline = time.monotonic() + _START_TIMEOUT_S
        attempts = 1
        while not self._answers():
            if not self.process.alive():
                # Another program may have taken the port after it was found free, and a Valkey
                # that was running when it was found may have been about to stop.
                port_taken = "already in use" in self.process.log_tail()
                if not (port_taken and attempts < _MAX_START_ATTEMPTS) and not self.process.was_running:
                    message = f"Valkey did not start:\n{self.process.log_tail()}"
                    if damage := damage_in(self.process):
                        raise _FilesDamaged(message, damage)
                    raise EngineError(message)
                attempts += 1
                self._spawn(_free_port(None))
            if time.monotonic() > deadline:
                raise EngineError(f"Valkey does not answer:\n{self.process.log_tail()}")
            time.sleep(POLL_S)

    def start(self) -> str:
        """Launch, wait, and return the URL."""
        self.launch()
        self.wait()
        return self.url

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it with SIGTERM, which writes the append-only file out, or after `timeout_s` by force.

        Does nothing if it is gone.
        """
        process = self.process or self.find()
        if process is not None:
            process.stop(signal.SIGTERM, timeout_s)
        self.process = None

    def _spawn(self, port: int) -> None:
        self._port = port
        quoted = str(self._directory).replace("\\", "\\\\").replace('"', '\\"')
        text = _CONFIGURATION.format(port=port, password=self._password, directory=quoted)
        write_private(self._configuration, text)
        write_private(self._port_file, str(port))
        command = [str(self._program or valkey_program()), str(self._configuration)]
        self.process = EngineProcess.spawn(command, cwd=self._directory, log=self._log, account=None)

    def _answers(self) -> bool:
        """Whether PING is answered; Valkey refuses it while it loads the append-only file."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    received = connection.recv(256)
                    if not received:
                        return False
                    answer += received
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


def _free_port(wanted: int | None) -> int:
    """`wanted` if it is free on loopback, else a random one of _PORTS that is.

    The kernel is not asked for a port: it would give one of the range that it also gives to outgoing
    connections, and a client that tries again and again to reach a Valkey that is away would in
    time connect to itself.
    """
    candidates = [wanted] if wanted else []
    candidates += [secrets.choice(_PORTS) for _ in range(100)]
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EngineError("no free port on 127.0.0.1")
