"""The system account that runs Postgres for root, since Postgres refuses to run as root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from dispatcher.embedded.packages import postgres_files, postgres_programs
from dispatcher.embedded.process import POLL_S, EngineError

_log = structlog.get_logger("dispatcher")

_NAME: Final = "pgserver"  # the package uses the same account when root runs it
_ACCOUNTS_LOCK: Final = Path("/etc/.pwd.lock")  # that of lckpwdf(3), which root alone can open
_TIMEOUT_S: Final = 30.0
_FOR_OTHERS: Final = stat.S_IROTH | stat.S_IXOTH


def prepare_account(data_directory: Path) -> pwd.struct_passwd:
    """Find or make the account, and let it reach `data_directory` and Postgres' programs.

    Raises EngineError if the account cannot be made, or a directory cannot be opened to it.
    """
    account = find_or_make_account()
    _let_pass(account, data_directory)
    _let_run_postgres(account)
    return account


def find_or_make_account(name: str = _NAME) -> pwd.struct_passwd:
    """The system account of that name, made if there is none; of servers that start at once, by one.

    Raises EngineError if it cannot be made.
    """
    if (account := _find(name)) is not None:
        return account
    program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        raise EngineError(
            "Postgres does not run as root, and there is no useradd to make a user for it: "
            "start the server as another user, or set DISPATCHER_DATABASE_URL"
        )
    options = ["--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    failure = ""
    try:
        with _accounts_locked():
            if (account := _find(name)) is None:  # no other server was faster
                made = subprocess.run(  # noqa: S603  fixed arguments
                    [program, *options, name],
                    capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
                )  # fmt: skip
                account, failure = _find(name), made.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if account is None:
        raise EngineError(f"the user {name} cannot be made: {failure}")
    return account


def _find(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


@contextlib.contextmanager
def _accounts_locked() -> Iterator[None]:
    """One server at a time makes the account.

    useradd looks whether a name is taken before it locks the accounts: of several at once, each makes
    the account anew with another id, and what the first ones started belongs to nobody. So the file is
    locked by flock, which does not stand in the way of useradd's own fcntl lock of it. Raises OSError.
    """
    descriptor = os.open(_ACCOUNTS_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _let_pass(account: pwd.struct_passwd, path: Path) -> None:
    """Let the account pass through `path` and all directories above it.

    Others get the right to pass where it is missing, not the right to list: without it, Postgres
    could not reach a checkout below /root.
    """
    for directory in (path, *path.parents):
        status = directory.stat()
        if status.st_uid != account.pw_uid and not status.st_mode & stat.S_IXOTH:
            if directory != path:
                _log.warning("Directory opened for passing through", directory=str(directory))
            try:
                directory.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)
            except OSError as error:
                raise EngineError(f"{account.pw_name} cannot enter {directory}: {error}") from error


def _let_run_postgres(account: pwd.struct_passwd) -> None:
    """Let the account read and run the programs, which a umask of 077 left to root alone."""
    programs = postgres_programs()
    _let_pass(account, programs.parent)
    if (programs / "postgres").stat().st_mode & _FOR_OTHERS == _FOR_OTHERS:
        return
    for tree in postgres_files():
        for path in (tree, *tree.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))
