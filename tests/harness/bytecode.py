"""Bytecode for the processes that tests start, where Python may not write it beside the sources."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable


def keep_bytecode() -> Callable[[], None]:
    """Gives bytecode a directory of this run, for this process and all that it starts.

    There are some hundred of them, and each would spend seconds on compiling its imports. Returns what
    removes the directory again; it does nothing where Python writes beside the sources.
    """
    if not sys.dont_write_bytecode:
        return lambda: None
    directory = tempfile.mkdtemp(prefix="dispatcher-bytecode-")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = directory
    sys.dont_write_bytecode = False
    return lambda: shutil.rmtree(directory, ignore_errors=True)
