"""Ends the embedded engines of a server that was killed.

Runs as a process of its own, `python -m dispatcher.embedded.guard DIRECTORY PID
GRACE_S`, with a pipe from the server as its input. A server that stops in order writes a byte;
one that was killed leaves an end of file. The engines then stay up for a while, for whoever wants
to look into them or for the next server to take over, and are stopped if nobody came.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

LOCK_FILE = "lock"  # of the directory; holds the number of the process that has it
_LOOK_S = 0.1


def main() -> None:
    """Wait for the end of the server; see the module."""
    directory, owner, grace_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    lock = directory / LOCK_FILE
    if sys.stdin.buffer.read(1):
        return
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        # A missing file means that the directory was removed under the engines.
        if not lock.exists():
            break
        if lock.read_text().strip() != owner:
            return  # the next server has taken over, with a guard of its own

    # Imported late: while the server lives, this process should be small.
    from dispatcher.config import SettingsError  # noqa: PLC0415
    from dispatcher.embedded.engines import stop_left_behind  # noqa: PLC0415

    try:
        stop_left_behind(directory)
    except SettingsError:
        return  # a server came at the last moment


if __name__ == "__main__":
    main()
