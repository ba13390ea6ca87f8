"""How many connections a process can hold: its limit of open files, less what it needs itself."""

from __future__ import annotations

import resource
from typing import Final

#: More than any process here uses; where there is no limit, this is it.
_MOST: Final = 1_048_576
#: For engines, files, listening sockets and the connections that are just being refused.
_OWN_FILES: Final = 256


def raise_open_files() -> int:
    """Raises the limit of open files of this process as far as it may; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY:
        return _MOST
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS has another limit behind this one
            pass
    return soft


def possible_connections(open_files: int) -> int:
    """How many connections leave a process enough files for itself."""
    return max(1, open_files - min(_OWN_FILES, open_files // 2))
