"""Who used how much CPU, by the operating system's own accounts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of CPU, user and system together."""

    server: float
    redis: float
    postgres: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(
            self.server - other.server, self.redis - other.redis, self.postgres - other.postgres
        )

    def per_request_us(self, requests: int) -> dict[str, float]:
        scale = 1e6 / max(1, requests)
        return {
            "server": self.server * scale,
            "redis": self.redis * scale,
            "postgres": self.postgres * scale,
        }


def _usage(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        times = process.cpu_times()
        # The children_* fields hold the children that ended and were waited for, so what a
        # backend used stays on the postmaster's account after the backend is gone.
        ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return float(times.user + times.system + ended)
    return 0.0


def _tree(pid: int | None, without: frozenset[int] = frozenset()) -> list[psutil.Process]:
    """The process and its descendants, leaving out the subtrees that begin at `without`."""
    if pid is None:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [psutil.Process(pid)]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child for child in process.children() if child.pid not in without]
        return found
    return []


@dataclass(frozen=True, slots=True)
class Accounts:
    """The processes of one system under test: a server and the engines it works on."""

    server: int | None
    redis: int | None = None
    postgres: int | None = None  # the postmaster

    @property
    def _engines(self) -> frozenset[int]:
        return frozenset(pid for pid in (self.redis, self.postgres) if pid is not None)

    def read(self) -> Cpu:
        """Everything used so far; subtract two readings. Steps of 10 ms (`USER_HZ`)."""
        return Cpu(
            sum(map(_usage, _tree(self.server, self._engines))),
            sum(map(_usage, _tree(self.redis))),
            sum(map(_usage, _tree(self.postgres))),
        )

    def server_memory_bytes(self) -> int:
        """Unique set size of the server's processes: what would be freed if they ended."""
        total = 0
        for process in _tree(self.server, self._engines):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().uss
        return total
