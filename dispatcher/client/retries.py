"""When a request is sent again, and when not any more."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import aiohttp
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_result,
    stop_before_delay,
    wait_random_exponential,
)

from dispatcher.client.problems import NoAnswer
from dispatcher.client.replies import Reply

#: Errors of a request or a connection that the network explains: it may have arrived, or not.
CONNECTION_ERRORS: Final = (aiohttp.ClientError, ConnectionError, TimeoutError)
#: Apps that were told the same time do not all come back in the same moment.
_JITTER: Final = 0.2

#: Sends a request once. Raises CONNECTION_ERRORS.
Send = Callable[[], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Retries:
    """Sends until there is a definite answer: after lost connections, and after refusals that pass.

    The rest between two attempts is what the server says (`Retry-After`), and a little more; else it is
    random, and longer each time. A rest that would end after the deadline is not begun. What is sent
    again must have one effect however often it arrives.
    """

    #: How long all attempts may take together, in s, and each of them.
    deadline_s: float = 30.0
    attempt_s: float = 10.0
    #: The longest rest after the first lost attempt, in s, which doubles; and the longest of all.
    first_rest_s: float = 0.2
    max_rest_s: float = 5.0

    async def until_answered(self, send: Send, *, deadline_s: float | None = None) -> Reply:
        """The first definite answer; or, at the deadline, the last refusal that would have passed.

        Raises NoAnswer where the last attempt had none.
        """
        total_s = self.deadline_s if deadline_s is None else deadline_s
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + total_s

        async def attempt() -> Reply:
            # Not wait_for: before Python 3.12, one that is cancelled as it is answered goes on.
            async with asyncio.timeout_at(min(loop.time() + self.attempt_s, ends_at)):
                return await send()

        # One for each call: tenacity keeps its state in the object.
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(CONNECTION_ERRORS) | retry_if_result(_passes),
            wait=self._rest_s,
            stop=stop_before_delay(total_s),
            retry_error_callback=_last_answer,
        )
        reply: Reply = await retrying(attempt)
        return reply

    def _rest_s(self, state: RetryCallState) -> float:
        outcome = state.outcome
        if outcome is not None:
            told = outcome.exception() if outcome.failed else outcome.result()
            told_s: float | None = getattr(told, "retry_after_s", None)
            if told_s is not None:
                return told_s * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311
        return wait_random_exponential(multiplier=self.first_rest_s, max=self.max_rest_s)(state)


def _passes(reply: Reply) -> bool:
    return reply.is_passing


def _last_answer(state: RetryCallState) -> Reply:
    assert state.outcome is not None
    error = state.outcome.exception()
    if error is not None:
        unanswered = NoAnswer("there was no answer in time")
        unanswered.retry_after = getattr(error, "retry_after_s", None)
        raise unanswered from error
    reply: Reply = state.outcome.result()
    return reply
