"""HTTP load on raw connections: one request in flight on each, without a client library."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from random import Random
from time import perf_counter

from harness.periodic_timer import PeriodicTimer


@dataclass(slots=True)
class Sample:
    """What one load saw. Latencies in seconds, in order of completion."""

    elapsed_s: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    codes: Counter[str] = field(default_factory=Counter)
    late: int = 0  # paced requests that were still not sent when the time was up

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.elapsed_s if self.elapsed_s else 0.0


class Connection(asyncio.Protocol):
    """Keep-alive connection that knows just enough HTTP to find the end of an answer."""

    __slots__ = ("buffer", "load", "started", "transport")

    def __init__(self, load: HttpLoad) -> None:
        self.load = load
        self.buffer = b""
        self.started = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.load.lost(self)

    def send(self, payload: bytes, started: float) -> None:
        self.started = started
        if self.transport is None:
            self.load.lost(self)
        else:
            self.transport.write(payload)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            at = data.find(b"ontent-Length: ", 0, end)
            if at < 0:
                at = data[:end].lower().find(b"ontent-length: ")
            size = int(data[at + 15 : data.find(b"\r", at)]) if at >= 0 else 0
            if len(data) >= end + 4 + size:
                self.buffer = b""
                self.load.answered(self, data)
                return
        self.buffer = data


class HttpLoad:
    """Runs in the load process; `run` may be called again on the same connections."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.kept: list[bytes] = []
        self._sample = Sample()
        self._requests: Iterator[bytes] = iter(())
        self._deadline = 0.0
        self._busy: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._due: deque[float] = deque()
        self._paced = False
        self._sending = False
        self._done: asyncio.Future[None] | None = None
        self._answers: dict[int, tuple[float, bytes]] | None = None
        self._index_of: dict[Connection, int] = {}

    async def open(self, host: str, port: int, connections: int) -> None:
        loop = asyncio.get_running_loop()
        for start in range(0, connections, 200):  # stays below a default listen backlog
            batch = range(start, min(start + 200, connections))
            made = await asyncio.gather(
                *(loop.create_connection(lambda: Connection(self), host, port) for _ in batch)
            )
            self.connections += [protocol for _, protocol in made]

    async def close(self) -> None:
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.close()
        self.connections.clear()

    async def keep(self, requests: list[bytes]) -> None:
        """Store the next load's requests, so that their transfer is over before the clock starts."""
        self.kept = requests

    async def run(self, seconds: float, *, cycle: bool = False) -> Sample:
        """Closed loop: the next request leaves when the last answer is there.

        Ends with the time or the requests, whichever is first; `cycle` starts them over.
        """
        self._begin(seconds, cycle=cycle)
        started = perf_counter()
        for connection in self._usable():
            self._next(connection)
        return await self._finish(started)

    async def run_paced(self, seconds: float, rate: float, *, cycle: bool = False) -> Sample:
        """Open loop: Poisson arrivals at `rate` a second, whatever the server does.

        Latency counts from the arrival, also while a request waits for a free connection, so a
        stall of the server is charged in full; so is the timer's own lateness.
        """
        self._begin(seconds, cycle=cycle)
        self._paced = True
        self._idle = deque(self._usable())
        random = Random(7)  # the same arrivals in every run
        started = perf_counter()
        finished = asyncio.get_running_loop().create_future()
        arrival = started + random.expovariate(rate)

        def send_due() -> None:
            nonlocal arrival
            now = perf_counter()
            while arrival <= now:
                self._due.append(arrival)
                arrival += random.expovariate(rate)
            while self._due and self._idle:
                self._next(self._idle.popleft())
            if now >= self._deadline and not finished.done():
                finished.set_result(None)

        timer = PeriodicTimer(send_due)
        await finished
        timer.stop()
        self._sample.late = len(self._due)
        self._due.clear()
        return await self._finish(started)

    async def burst(self) -> tuple[Sample, dict[int, tuple[float, bytes]]]:
        """Every connection sends one request, all at once.

        Also returns, by the request's index: seconds since the start, and the answer.
        """
        self._begin(60.0, cycle=False)
        self._answers = answers = {}
        usable = self._usable()[: len(self.kept)]
        if len(usable) < len(self.kept):
            raise RuntimeError(f"{len(self.kept)} requests need as many connections")
        self._index_of = {connection: index for index, connection in enumerate(usable)}
        started = perf_counter()
        for connection in usable:
            self._next(connection, started)
        sample = await self._finish(started)
        self._answers = None
        return sample, answers

    def answered(self, connection: Connection, data: bytes) -> None:
        now = perf_counter()
        sample = self._sample
        sample.latencies.append(now - connection.started)
        code = data[9:12]
        if code >= b"300":
            at = data.find(b'"response_code":"')
            if at >= 0:
                code += b" " + data[at + 17 : data.find(b'"', at + 17)]
        sample.codes[code.decode()] += 1
        if self._answers is not None:
            self._answers[self._index_of[connection]] = (now - connection.started, data)
        self._busy.discard(connection)
        if now < self._deadline and (not self._paced or self._due):
            self._next(connection)
        elif self._paced:
            self._idle.append(connection)
        self._check_done()

    def lost(self, connection: Connection) -> None:
        if connection in self._busy:
            self._busy.discard(connection)
            self._sample.codes["connection lost"] += 1
            self._check_done()

    def _begin(self, seconds: float, *, cycle: bool) -> None:
        self._sample = Sample()
        endless = (request for again in repeat(self.kept) for request in again)
        self._requests = endless if cycle else iter(self.kept)
        self._deadline = perf_counter() + seconds
        self._busy.clear()
        self._paced = False
        self._sending = True
        self._done = asyncio.get_running_loop().create_future()

    def _usable(self) -> list[Connection]:
        return [connection for connection in self.connections if connection.transport is not None]

    def _next(self, connection: Connection, started: float | None = None) -> None:
        payload = next(self._requests, None)
        if payload is None:
            self._deadline = 0.0
            return
        if started is None:
            started = self._due.popleft() if self._paced else perf_counter()
        self._busy.add(connection)
        connection.send(payload, started)

    def _check_done(self) -> None:
        if not (self._busy or self._sending) and self._done and not self._done.done():
            self._done.set_result(None)

    async def _finish(self, started: float) -> Sample:
        """Wait for what is still in flight; a server that hangs is cut off after 30 s."""
        assert self._done is not None
        remaining = max(0.0, self._deadline - perf_counter()) + 30
        self._sending = False
        self._check_done()
        try:
            await asyncio.wait_for(self._done, remaining)
        except TimeoutError:
            self._sample.codes["no answer in 30 s"] += len(self._busy)
        self._sample.elapsed_s = perf_counter() - started
        return self._sample
