"""The checker in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import signal
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType

from tests.faults.checker import check
from tests.faults.evidence import Evidence


class Judge:
    """Checks evidence beside the event loop.

    A thread will not do: proxies, sockets and apps live in the loop, and a thread that computes keeps the
    interpreter's lock from it for 5 ms at each of its turns. On a busy machine both engines seemed to
    be silent for 12 s to the servers behind the proxies.
    """

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
        )

    async def __aenter__(self) -> Judge:
        self._process.submit(_check, pickle.dumps(None))  # it starts while the round begins
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._process.shutdown)

    async def check(self, evidence: Evidence) -> list[str]:
        """Every breach of every promise by what the evidence holds now."""
        packed = pickle.dumps(evidence)  # here: the history grows meanwhile
        return await asyncio.get_running_loop().run_in_executor(self._process, _check, packed)


def _check(packed: bytes) -> list[str]:
    evidence: Evidence | None = pickle.loads(packed)
    return check(evidence) if evidence is not None else []
