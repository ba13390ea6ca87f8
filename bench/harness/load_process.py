"""A process for a load generator, apart from the event loop that is measured."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import resource
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import uvloop


def raise_open_files() -> int:
    """Lift the soft limit to the hard one; children inherit it. Returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class LoadProcess:
    """Builds `factory()` in a process of its own and calls its coroutines by name.

    Between two calls its event loop stands still; then the parent reads the CPU times.
    """

    def __init__(self, factory: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(factory, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.result()  # once it has imported everything, so that no load is charged for that CPU

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a coroutine of the load and waits for its result. Raises RuntimeError if it fails."""
        self._pipe.send((method, arguments, options))
        return self.result()

    def start(self, method: str, *arguments: Any, **options: Any) -> None:
        """Like `call`, without waiting: `result` does that."""
        self._pipe.send((method, arguments, options))

    def result(self) -> Any:
        """The result of the last call. Raises RuntimeError if it failed."""
        try:
            good, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the load generator's process ended") from None
        if not good:
            raise RuntimeError(f"in the load generator:\n{value}")
        return value

    def __enter__(self) -> LoadProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()


def _serve(factory: Callable[[], Any], pipe: Connection) -> None:
    raise_open_files()
    # A pause for garbage collection would count as latency of the server.
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def construct() -> Any:
            return factory()

        load = runner.run(construct())
        pipe.send((True, None))
        while True:
            try:
                method, arguments, options = pipe.recv()
            except (EOFError, OSError, KeyboardInterrupt):
                return
            try:
                value = runner.run(getattr(load, method)(*arguments, **options))
                pipe.send((True, value))
            except KeyboardInterrupt:
                return
            except Exception:
                pipe.send((False, traceback.format_exc()))
