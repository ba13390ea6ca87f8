"""The files of a Valkey that it does not start from: known by its log, and put aside."""

from __future__ import annotations

import re
import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from dispatcher.embedded.process import EngineError, EngineProcess

_log = structlog.get_logger("dispatcher")

_MANIFEST: Final = "AOF MANIFEST FILE ERROR"
#: What Valkey says of files that are damaged or not all there. What it cannot open or read for a reason
#: of the machine (rights, a disk's errors) is not among it: that would be no better with other files.
_DAMAGE: Final = re.compile(
    r"(?:Bad file format|Unexpected end of file) reading the append only file"
    r"|Unable to obtain the AOF file .*: No such file or directory"
    rf"|{_MANIFEST}"
    r"|Internal error in RDB reading|RDB has duplicated key"
)
#: A value that memory was lacking for is told as a base file that is too short, after this line.
_NO_MEMORY: Final = "failed allocating"
#: How Valkey ends itself over a base file that contradicts itself.
_PANICS: Final = (-signal.SIGABRT, -signal.SIGSEGV)
_LOG_BYTES: Final = 200_000  # a start logs little, and a panic a report of some 20 kB
_NAME: Final = re.compile(r"appendonlydir\.damaged-\d{8}T\d{6}\.\d{6}Z")
_MAX_KEPT: Final = 3


def damage_in(process: EngineProcess) -> str:
    """The line of the log of a start by which the files are damaged; empty where it ended for another
    reason, or was killed."""
    code = process.exit_code
    if code is None or (code < 0 and code not in _PANICS):
        return ""
    log = process.log_tail(_LOG_BYTES)
    if _NO_MEMORY in log:
        return ""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reason = next((line for line in lines if _DAMAGE.search(line)), "")
    # What is wrong with a manifest follows a headline, as the last words.
    return lines[-1] if _MANIFEST in reason else reason


class DamagedFiles:
    """Beside Valkey's files: those it did not start from, by the time they were put aside (UTC)."""

    def __init__(self, files: Path) -> None:
        self._files = files

    def put_aside(self, reason: str) -> Path:
        """Moves the files away, for an empty start; returns where they are. Raises EngineError."""
        aside = self._files.with_name(f"appendonlydir.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        # Before: whoever is interrupted in between starts empty the next time.
        _log.warning("Valkey's files are damaged: it starts empty", moved_to=str(aside), reason=reason)
        try:
            self._files.rename(aside)
        except OSError as error:
            raise EngineError(f"Valkey's damaged files cannot be put aside: {error}") from error
        return aside

    def put_back(self, aside: Path) -> None:
        """Valkey does not start without them either: they are no worse where they were."""
        try:
            shutil.rmtree(self._files, ignore_errors=True)
            aside.rename(self._files)
        except OSError as error:
            raise EngineError(f"Valkey's files stay at {aside}: {error}") from error

    def drop_old(self) -> None:
        """Leaves the newest three."""
        kept = sorted(path for path in self._files.parent.iterdir() if _NAME.fullmatch(path.name))
        for path in kept[:-_MAX_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
