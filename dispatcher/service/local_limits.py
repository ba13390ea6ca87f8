"""Limits as this process alone has seen them: what it admitted, in the same exact sliding logs.

While Redis is away they decide. No process sees what the others admit, so each has an equal share of
every allowance, at least one call. A Redis that came back empty is told of them before it decides.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Final, NamedTuple

from dispatcher.core.limits import Limit, Limits, LimitState
from dispatcher.core.times import now_ms

#: Logs that are kept at most; those whose window is over go first, then those that were begun first.
_MAX_LOGS: Final = 100_000

_Name = tuple[str, str, str]


class AdmissionLog(NamedTuple):
    """When (ms) calls of one subject were admitted, oldest first, and the limit's window (ms).

    An empty deque takes 760 bytes, and most subjects have made few calls.
    """

    window_ms: int
    times_ms: array[int]


class LocalLimits:
    """What this process admits. `servers` says among how many the allowances are shared."""

    def __init__(self, servers: Callable[[], int], clock_ms: Callable[[], int] = now_ms) -> None:
        self._servers = servers
        self._clock_ms = clock_ms
        self._logs: dict[_Name, AdmissionLog] = {}

    def check(self, limits: Limits) -> tuple[bool, LimitState | None]:
        """Whether a call is admitted, and the limit to report, as `lua/lib/limits.lua` chooses it."""
        now, servers = self._clock_ms(), self._servers()
        refused: LimitState | None = None
        tightest: LimitState | None = None
        for limit in limits:
            log = self._log(limit, now)
            if log and log[-1] > now:  # the clock was set back: what lies ahead counts as of now
                log[:] = array("q", [min(at, now) for at in log])
            allowed, window_ms = max(1, limit.rate.limit // servers), limit.rate.window_s * 1000
            if len(log) >= allowed:
                eases_ms = log[len(log) - allowed] + window_ms
                if refused is None or eases_ms > refused.reset_ms:
                    refused = LimitState(limit.name, limit.rate, 0, eases_ms, now)
            else:
                remaining, reset_ms = allowed - len(log), (log[0] if log else now) + window_ms
                if tightest is None or remaining < tightest.remaining:
                    tightest = LimitState(limit.name, limit.rate, remaining, reset_ms, now)
        return refused is None, refused or tightest

    def record(self, limits: Limits, state: LimitState | None) -> LimitState | None:
        """Counts a call that this process admits: `state`, as checked, as it stands afterwards."""
        self.note(limits, state)
        return None if state is None else state._replace(remaining=state.remaining - 1)

    def give_back(self, limits: Limits, at_ms: int | None = None) -> None:
        """Forgets a call that was recorded at a time, or the newest one."""
        for limit in limits:
            log = self._logs.get((limit.name, limit.subject, limit.zone))
            # A log may have made room for others, or the clock was set back.
            if log is None or not log.times_ms:
                continue
            if at_ms is None:
                log.times_ms.pop()
            elif at_ms in log.times_ms:
                log.times_ms.remove(at_ms)

    def note(self, limits: Limits, state: LimitState | None = None) -> None:
        """A call was admitted: here, or by Redis, whose time `state` has then."""
        now = self._clock_ms() if state is None else state.now_ms
        for limit in limits:
            self._log(limit, now).append(now)

    def logs_of(self, zone: str) -> Iterator[tuple[str, str, AdmissionLog]]:
        """The logs that a zone keeps, each with its limit's name and subject."""
        since = self._clock_ms()
        for (name, subject, kept_by), log in list(self._logs.items()):
            if kept_by == zone and log.times_ms and log.times_ms[-1] > since - log.window_ms:
                yield name, subject, log

    def zones(self) -> set[str]:
        """The zones that keep a log."""
        return {kept_by for *_, kept_by in self._logs}

    def _log(self, limit: Limit, now: int) -> array[int]:
        name = (limit.name, limit.subject, limit.zone)
        known = self._logs.get(name)
        if known is None:
            if len(self._logs) >= _MAX_LOGS:
                self._make_room(now)
            known = self._logs[name] = AdmissionLog(limit.rate.window_s * 1000, array("q"))
            return known.times_ms
        times, since = known.times_ms, now - known.window_ms
        if times and times[0] <= since:
            del times[: sum(1 for _ in takewhile(lambda at: at <= since, times))]
        return times

    def _make_room(self, now: int) -> None:
        for name, log in list(self._logs.items()):
            if not log.times_ms or log.times_ms[-1] <= now - log.window_ms:
                del self._logs[name]
        for name in list(self._logs)[: max(0, len(self._logs) - _MAX_LOGS * 9 // 10)]:
            del self._logs[name]
