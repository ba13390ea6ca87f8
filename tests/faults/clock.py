"""The wall clock of one process, which jumps without its knowing: libfaketime, in front of the C library.

The product has no switch for it. The monotonic clock is left alone, as a kernel leaves it when the time is set.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.impossible import Impossible

_PROBE_S = 5000
#: How often, in s, a process looks whether its clock has been set.
LOOKS_EVERY_S = 1


class Clock:
    """A clock that `environment` gives to a process; it is right until it leaps."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._set(0.0)
        self.is_possible = _works()

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that lives by this clock; none where there is no such clock."""
        return self._variables() if self.is_possible else {}

    def wrapper(self, program: Path, directory: Path) -> Path:
        """A program of the same name that runs `program` by this clock."""
        if not self.is_possible:
            return program
        words = [f"{name}={value}" for name, value in self._variables().items()]
        script = directory / program.name
        script.write_text(f'#!/bin/sh\nexec env {shlex.join(words)} {shlex.quote(str(program))} "$@"\n')
        script.chmod(0o700)
        return script

    def leap(self, ahead_s: float) -> None:
        """Sets it `ahead_s` from the right time. Raises Impossible where there is no such clock."""
        if not self.is_possible:
            raise Impossible("a clock that jumps takes libfaketime, which does not work here")
        self._set(ahead_s)

    def _set(self, ahead_s: float) -> None:
        draft = self._file.with_suffix(".draft")
        draft.write_text(f"{ahead_s:+.3f}")
        draft.replace(self._file)

    def _variables(self) -> dict[str, str]:
        return {**_variables(), "FAKETIME_TIMESTAMP_FILE": str(self._file)}


@functools.cache
def _works() -> bool:
    """Whether a process on this machine can be given another time."""
    if _library() is None:
        return False
    probe = [sys.executable, "-c", "import time; print(time.time())"]
    env = {**os.environ, **_variables(), "FAKETIME": f"+{_PROBE_S}"}
    done = subprocess.run(probe, env=env, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        return False
    return abs(float(done.stdout) - time.time() - _PROBE_S) < _PROBE_S / 2


def _variables() -> dict[str, str]:
    return {
        "LD_PRELOAD": str(_library()),
        "FAKETIME_CACHE_DURATION": str(LOOKS_EVERY_S),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def _library() -> Path | None:
    spec = importlib.util.find_spec("libfaketime")
    if spec is None or spec.origin is None or sys.platform != "linux":
        return None
    return Path(spec.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
