"""The one start and stop contract of background jobs."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.observe.series import JOB_OUTCOMES, JOB_RUNS

log = structlog.get_logger("dispatcher.jobs")

#: Rests vary by a tenth, so that servers which started together do not stay in step.
_JITTER: Final = 0.1
#: Rest after a failure at least: an engine that is away is not asked, and logged, at every turn.
_MIN_REST_AFTER_FAILURE_S: Final = 1.0


class Job(Protocol):
    """What a server does again and again beside its requests."""

    @property
    def name(self) -> str:
        """The job's name in log lines."""

    @property
    def interval_s(self) -> float:
        """The usual rest between two runs, also before the first one."""

    async def run(self) -> float | None:
        """Does what is due. Returns the rest until the next run in s; None for the usual one.

        Raises StoreUnavailable or OutcomeUnknown where an engine is away: the job is put off.
        """


@dataclass(frozen=True, slots=True)
class FunctionJob:
    """A job that is one function, called at its interval."""

    name: str
    interval_s: float
    function: Callable[[], Awaitable[object]]

    async def run(self) -> None:
        await self.function()


class JobLoop:
    """Runs a job until it is stopped. A failure is logged, not fatal."""

    def __init__(self, job: Job) -> None:
        self._job = job
        JOB_RUNS.know((job.name, outcome) for outcome in JOB_OUTCOMES)
        self._wakeup = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; the first run comes after one interval, or when the loop is woken."""
        self._task = asyncio.create_task(self._run(), name=self._job.name)

    async def stop(self) -> None:
        """Lets a run that has begun come to its end."""
        self._stopping = True
        self._wakeup.set()
        if self._task:
            await self._task

    def wake(self) -> None:
        """Something is due: ends the rest."""
        self._wakeup.set()

    async def _run(self) -> None:
        rest_s: float | None = None
        while True:
            await self._rest(self._job.interval_s if rest_s is None else rest_s)
            if self._stopping:
                return
            rest_s = await self._run_once()

    async def _rest(self, seconds: float) -> None:
        jittered_s = seconds * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(jittered_s):
                await self._wakeup.wait()
        self._wakeup.clear()

    async def _run_once(self) -> float | None:
        name = self._job.name
        try:
            rest_s = await self._job.run()
        except (StoreUnavailable, OutcomeUnknown) as error:
            JOB_RUNS.add(name, "put_off")
            log.warning("job is put off", job=name, reason=str(error))
        except Exception:
            JOB_RUNS.add(name, "failed")
            log.exception("job failed", job=name)
        else:
            JOB_RUNS.add(name, "done")
            return rest_s
        return max(_MIN_REST_AFTER_FAILURE_S, self._job.interval_s)
