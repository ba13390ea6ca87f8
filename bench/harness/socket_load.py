"""WebSocket load: thousands of driver apps in one process, which all do the same at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from time import perf_counter

from harness.encoding import websocket_handshake
from harness.http_load import Sample
from harness.periodic_timer import PeriodicTimer
from harness.websocket_client import WebSocketClient, frame_code, is_answer

MAX_HANDSHAKES = 128  # at a time; more of them may overflow the listen backlog
TIMEOUT_S = 60.0


class SocketLoad:
    """Runs in the load process. Between two calls the apps are idle."""

    def __init__(self) -> None:
        self.sockets: list[WebSocketClient] = []
        self.codes: Counter[str] = Counter()
        self._host, self._port, self._bearers = "", 0, list[str]()
        self._sample = Sample()
        self._waiting = 0
        self._done: asyncio.Future[None] | None = None
        self._answers: dict[int, tuple[float, bytes]] = {}
        self._seen: list[tuple[float, int, bytes]] | None = None
        self._stream: PositionStream | None = None

    async def open(self, host: str, port: int, bearers: list[str]) -> Sample:
        """Connect an app for each token and wait for its `welcome`; latency is until then."""
        self._host, self._port, self._bearers = host, port, bearers
        return await self._connect(range(len(bearers)))

    async def storm(self) -> Sample:
        """All apps lose their connection at one moment and come back at once."""
        for socket in self.sockets:
            if socket.transport is not None:
                socket.transport.abort()
        self.sockets.clear()
        return await self._connect(range(len(self._bearers)))

    async def churn(self, lanes: int, seconds: float) -> int:
        """Connect, wait for the `welcome`, and drop the connection without a word, again and again, in
        `lanes` at a time, beside the apps that stay. Returns how many were dropped."""
        loop, deadline, dropped = asyncio.get_running_loop(), perf_counter() + seconds, 0
        self._expect(len(self._bearers) + 1)  # nobody waits for all of them

        async def drop_again(lane: int) -> None:
            nonlocal dropped
            while perf_counter() < deadline:
                socket = WebSocketClient(self, lane)
                socket.waiting = True
                await loop.create_connection(lambda: socket, self._host, self._port)  # noqa: B023
                socket.send(websocket_handshake("/ws", bearer=self._bearers[lane]))
                while socket.waiting and perf_counter() < deadline + TIMEOUT_S:
                    await asyncio.sleep(0.001)
                if socket.transport is not None:
                    socket.transport.abort()
                dropped += 1

        await asyncio.gather(*map(drop_again, range(min(lanes, len(self._bearers)))))
        return dropped

    async def close(self) -> None:
        for socket in self.sockets:
            if socket.transport is not None:
                socket.transport.close()
        self.sockets.clear()
        await asyncio.sleep(0)

    async def _connect(self, indexes: range) -> Sample:
        loop = asyncio.get_running_loop()
        started = self._expect(len(indexes))
        gate = asyncio.Semaphore(MAX_HANDSHAKES)

        async def connect(index: int) -> None:
            async with gate:
                socket = WebSocketClient(self, index)
                socket.started, socket.waiting = perf_counter(), True
                await loop.create_connection(lambda: socket, self._host, self._port)
                self.sockets.append(socket)
                socket.send(websocket_handshake("/ws", bearer=self._bearers[index]))

        await asyncio.gather(*map(connect, indexes))
        await self._wait_answers(started)
        self.sockets.sort(key=lambda socket: socket.index)
        return self._sample

    async def burst(self, frames: list[bytes]) -> tuple[Sample, dict[int, tuple[float, bytes]]]:
        """Each app sends its frame, all at once; every one is answered by `ack` or `error`."""
        self._answers = {}
        started = self._expect(len(frames))
        for socket, frame in zip(self.sockets, frames, strict=False):
            socket.started, socket.waiting = started, True
            socket.send(frame)
        await self._wait_answers(started)
        return self._sample, self._answers

    async def pace(self, frames: list[bytes], rate: float, seconds: float) -> int:
        """Send `frames` in rotation, `rate` a second over all apps. Returns how many were sent."""
        started, sent = perf_counter(), 0
        finished = asyncio.get_running_loop().create_future()

        def send_due() -> None:
            nonlocal sent
            now = perf_counter() - started
            while sent < now * rate:
                index = sent % len(self.sockets)
                self.sockets[index].send(frames[index % len(frames)])
                sent += 1
            if now >= seconds and not finished.done():
                finished.set_result(None)

        timer = PeriodicTimer(send_due)
        await finished
        timer.stop()
        return sent

    async def stream(self, chunks: list[list[bytes]], frames: int, seconds: float) -> Sample:
        """Closed loop of positions. An app's chunk holds `frames` frames, the last of which asks
        for an `ack`; when it is there, the app sends its next chunk. Counts frames."""
        self._sample = Sample()
        self._stream = stream = PositionStream(self, chunks, frames, perf_counter() + seconds)
        started = perf_counter()
        for socket in self.sockets:
            stream.next(socket)
        await asyncio.wait_for(stream.done, seconds + TIMEOUT_S)
        self._stream = None
        self._sample.elapsed_s = perf_counter() - started
        return self._sample

    async def watch(self) -> None:
        """From now on, keep the texts that arrive, with the system's monotonic time."""
        self._seen = []

    async def seen(self, amount: int, timeout_s: float) -> list[tuple[float, int, bytes]]:
        """What was seen since `watch`: once there are `amount` offers, or the time is up."""
        deadline = perf_counter() + timeout_s
        seen = self._seen if self._seen is not None else []
        while sum(b'"type":"offer"' in text for _, _, text in seen) < amount:
            if perf_counter() > deadline:
                break
            await asyncio.sleep(0.002)
        self._seen = None
        return seen

    def text(self, socket: WebSocketClient, text: bytes) -> None:
        if self._seen is not None:
            self._seen.append((time.monotonic(), socket.index, text))
        if self._stream is not None:
            self._stream.text(socket, text)
        elif socket.waiting and is_answer(text):
            socket.waiting = False
            now = perf_counter()
            self._sample.latencies.append(now - socket.started)
            self._sample.codes[frame_code(text)] += 1
            self._answers[socket.index] = (now - socket.started, text)
            self._count_down()

    def refused(self, socket: WebSocketClient, status: bytes) -> None:
        self._sample.codes[status.decode()] += 1
        if socket.waiting:
            socket.waiting = False
            self._count_down()

    def lost(self, socket: WebSocketClient) -> None:
        if socket.waiting:
            socket.waiting = False
            self._sample.codes["connection lost"] += 1
            self._count_down()
        if self._stream is not None:
            self._stream.lost(socket)

    def _expect(self, amount: int) -> float:
        self._sample = Sample()
        self._waiting = amount
        self._done = asyncio.get_running_loop().create_future()
        return perf_counter()

    def _count_down(self) -> None:
        self._waiting -= 1
        if self._waiting == 0 and self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def _wait_answers(self, started: float) -> None:
        assert self._done is not None
        try:
            await asyncio.wait_for(self._done, TIMEOUT_S)
        except TimeoutError:
            self._sample.codes[f"no answer in {TIMEOUT_S:.0f} s"] += self._waiting
        self._sample.elapsed_s = perf_counter() - started


class PositionStream:
    """A closed loop of positions: each app has one chunk in flight."""

    def __init__(
        self, load: SocketLoad, chunks: list[list[bytes]], frames: int, deadline: float
    ) -> None:
        self.load = load
        self.chunks = chunks
        self.frames = frames
        self.deadline = deadline
        self.sent_chunks = [0] * len(load.sockets)
        self.busy: set[WebSocketClient] = set()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next(self, socket: WebSocketClient) -> None:
        own = self.chunks[socket.index]
        number = self.sent_chunks[socket.index]
        self.sent_chunks[socket.index] = number + 1
        socket.started = perf_counter()
        self.busy.add(socket)
        socket.send(own[number % len(own)])

    def text(self, socket: WebSocketClient, text: bytes) -> None:
        if not is_answer(text):
            return
        now = perf_counter()
        sample = self.load._sample
        sample.codes[frame_code(text)] += 1
        if b'"id":null' in text[:60] or b'"id"' not in text[:60]:
            return  # about one of the frames before the last
        sample.latencies.extend([now - socket.started] * self.frames)
        self.busy.discard(socket)
        if now < self.deadline:
            self.next(socket)
        else:
            self._check()

    def lost(self, socket: WebSocketClient) -> None:
        self.busy.discard(socket)
        self._check()

    def _check(self) -> None:
        if not self.busy and not self.done.done():
            self.done.set_result(None)
