"""How much CPU and memory the measured processes use, as the operating system accounts for it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """CPU time in seconds, user and system together."""

    server: float
    redis: float
    postgres: float

    def __sub__(self, other: CpuSeconds) -> CpuSeconds:
        return CpuSeconds(
            self.server - other.server, self.redis - other.redis, self.postgres - other.postgres
        )

    def per_request_us(self, requests: int) -> dict[str, float]:
        """CPU microseconds a request, by process."""
        scale = 1e6 / max(1, requests)
        return {
            "server": self.server * scale,
            "redis": self.redis * scale,
            "postgres": self.postgres * scale,
        }


def _cpu_seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        times = process.cpu_times()
        # The children_* fields hold the children that ended and were waited for, so the
        # postmaster's figures include the backends that ended.
        ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return float(times.user + times.system + ended)
    return 0.0


def _with_descendants(pid: int | None) -> set[psutil.Process]:
    """The process and its descendants."""
    if pid is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            return {process, *process.children(recursive=True)}
    return set()


@dataclass(frozen=True, slots=True)
class MeasuredProcesses:
    """The processes of one system under test: a server and the engines it works on."""

    server: int | None
    redis: int | None = None
    postgres: int | None = None  # the postmaster

    def cpu(self) -> CpuSeconds:
        """CPU time since each process started, in steps of 10 ms (`USER_HZ`); subtract two readings."""
        redis, postgres = _with_descendants(self.redis), _with_descendants(self.postgres)
        server = _with_descendants(self.server) - redis - postgres  # embedded engines are its children
        return CpuSeconds(*(sum(map(_cpu_seconds, tree)) for tree in (server, redis, postgres)))

    def server_memory_bytes(self) -> int:
        """Unique set size of the server's processes: what would be freed if they ended."""
        total = 0
        redis, postgres = _with_descendants(self.redis), _with_descendants(self.postgres)
        for process in _with_descendants(self.server) - redis - postgres:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().uss
        return total
