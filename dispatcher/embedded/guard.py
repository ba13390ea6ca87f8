"""Ends the embedded engines of a server that was killed.

Runs as a process of its own, `python -m dispatcher.embedded.guard LOCK_FILE PID GRACE_S`, with a
pipe from the server as its input. A server that stops in order writes a byte; when one is killed,
the pipe ends without it. The engines then stay up for GRACE_S seconds, for a look into them or
for the next server to take them over, and are stopped if no server came.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.1


def main() -> None:
    """Wait for the end of the server, then for the next one, then stop the engines."""
    lock_file, owner, grace_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    if sys.stdin.buffer.read(1):
        return
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        if not lock_file.exists():
            break  # the directory was removed, and the engines still run
        if lock_file.read_text().strip() != owner:
            return  # the next server has taken over, with a guard of its own

    # Imported only now: while the server lives, this process should be small.
    from dispatcher.config import SettingsError  # noqa: PLC0415
    from dispatcher.embedded.engines import stop_left_behind  # noqa: PLC0415

    try:
        stop_left_behind(lock_file.parent)
    except SettingsError:
        return  # a server came at the last moment


if __name__ == "__main__":
    main()
