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
        return Cpu(self.server - other.server, self.redis - other.redis, self.postgres - other.postgres)

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


def _tree(pid: int | None) -> set[psutil.Process]:
    """The process and its descendants."""
    if pid is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            return {process, *process.children(recursive=True)}
    return set()


@dataclass(frozen=True, slots=True)
class Accounts:
    """The processes of one system under test: a server and the engines it works on."""

    server: int | None
    redis: int | None = None
    postgres: int | None = None  # the postmaster

    def read(self) -> Cpu:
        """Everything used so far; subtract two readings. Steps of 10 ms (`USER_HZ`)."""
        redis, postgres = _tree(self.redis), _tree(self.postgres)
        server = _tree(self.server) - redis - postgres  # embedded engines are its children
        return Cpu(*(sum(map(_usage, tree)) for tree in (server, redis, postgres)))

    def server_memory_bytes(self) -> int:
        """Unique set size of the server's processes: what would be freed if they ended."""
        total = 0
        for process in _tree(self.server) - _tree(self.redis) - _tree(self.postgres):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().uss
        return total
