"""A small disk that both engines work on, and that can be full: a tmpfs, where this machine lets us mount one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.faults.impossible import Impossible

#: A new database and an hour of a round's rows take a quarter of it.
_SIZE_MB = 512
_PIECE = bytes(1 << 20)


class Disk:
    """`directory` is the disk where it could be mounted; otherwise an ordinary directory that is never full."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.is_mounted = False

    def mount(self) -> None:
        """Mounts it, if this is Linux and we may."""
        mount = shutil.which("mount")
        if sys.platform == "linux" and os.geteuid() == 0 and mount is not None:
            command = [
                mount,
                "-t",
                "tmpfs",
                "-o",
                f"size={_SIZE_MB}m,mode=711",
                "tmpfs",
                str(self.directory),
            ]
            self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def unmount(self) -> None:
        """Takes it away, with all that is on it."""
        if self.is_mounted:
            subprocess.run(["umount", str(self.directory)], check=True)
            self.is_mounted = False

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        """No space is left meanwhile. Raises Impossible where it is no disk of its own."""
        if not self.is_mounted:
            raise Impossible("a full disk takes a tmpfs, which only root may mount, on Linux")
        ballast = self.directory / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                _fill(file.fileno())
            yield
        finally:
            ballast.unlink(missing_ok=True)


def _fill(descriptor: int) -> None:
    piece = _PIECE
    while piece:
        try:
            os.write(descriptor, piece)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            piece = piece[: len(piece) // 2]
