"""The `dispatcher` command in this process: for what it prints, and the status that it ends with.

It spares a new process its imports, which are most of what a refusal costs. What is about processes
(signals, terminals, `serve`) starts one.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from unittest import mock

import structlog

from dispatcher.cli import main


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`dispatcher ARGS` with exactly these settings. Not for two at once."""
    clean = {name: value for name, value in os.environ.items() if "DISPATCHER_" not in name}
    out, err = io.StringIO(), io.StringIO()
    ended: list[SystemExit] = []

    def command() -> None:
        try:
            main()
        except SystemExit as end:
            ended.append(end)

    logs = structlog.get_config()
    with (
        mock.patch.dict(os.environ, clean | env, clear=True),
        mock.patch.object(sys, "argv", ["dispatcher", *args]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            # A thread of its own, since the command runs an event loop, and tests may be in one.
            thread = threading.Thread(target=command)
            thread.start()
            thread.join()
        finally:
            structlog.configure(**logs)
    assert ended, err.getvalue()  # what ends otherwise is shown by pytest
    code = ended[0].code
    status = code if isinstance(code, int) else 0 if code is None else 1
    return subprocess.CompletedProcess(["dispatcher", *args], status, out.getvalue(), err.getvalue())
