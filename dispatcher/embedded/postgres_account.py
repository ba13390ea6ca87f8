"""The system account that runs Postgres for root, since Postgres refuses to run as root."""

from __future__ import annotations

import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final

import structlog

from dispatcher.embedded.packages import postgres_files, postgres_programs
from dispatcher.embedded.process import EngineError

_log = structlog.get_logger("dispatcher")

_NAME: Final = "pgserver"  # the package uses the same account when root runs it
_FOR_OTHERS: Final = stat.S_IROTH | stat.S_IXOTH


def prepare_account(data_directory: Path) -> pwd.struct_passwd:
    """Find or make the account, and let it reach `data_directory` and Postgres' programs.

    Raises EngineError if the account cannot be made, or a directory cannot be opened to it.
    """
    account = _find_or_make()
    _let_pass(account, data_directory)
    _let_run_postgres(account)
    return account


def _find_or_make() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_NAME)
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
        [program, *options, _NAME], capture_output=True, text=True, check=False
    )
    try:
        return pwd.getpwnam(_NAME)  # useradd fails where another server was faster
    except KeyError:
        raise EngineError(f"the user {_NAME} cannot be made: {made.stderr}") from None


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
