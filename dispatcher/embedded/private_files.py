"""Small files that only their owner may read: secrets, and configuration with a password in it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path` with mode 0600, whole or not at all."""
    _write_draft(path, text).replace(path)


def make_private(path: Path, text: str) -> str:
    """Write `text` to `path` with mode 0600 if it does not exist; return what the file holds.

    Two processes that do this at once agree on one text.
    """
    if not path.exists():
        draft = _write_draft(path, text)
        try:
            os.link(draft, path)  # fails, and replaces nothing, if another process was faster
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text()


def _write_draft(path: Path, text: str) -> Path:
    """Write `text` to a file beside `path` and to the disk; mkstemp gives it mode 0600."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    return Path(name)
