"""Measures one server under one HTTP load: latency, rate, and CPU before and after."""

from __future__ import annotations

from harness.encoding import address
from harness.figures import Run
from harness.http_load import HttpLoad, Sample
from harness.load_process import LoadProcess
from harness.servers import Server, start_rival


class HttpGenerator:
    """A load process for HTTP, which a script uses for all its runs."""

    def __init__(self) -> None:
        self._generator = LoadProcess(HttpLoad)

    def __enter__(self) -> HttpGenerator:
        return self

    def __exit__(self, *exception: object) -> None:
        self._generator.__exit__(None, None, None)

    def measure(
        self,
        server: Server,
        requests: list[bytes],
        *,
        seconds: float,
        connections: int,
        rate: float | None = None,
        cycle: bool = False,
    ) -> Run:
        """Closed loop at full speed, or arrivals at `rate` a second."""
        call = self._generator.call
        call("keep", requests)
        call("open", *address(server.url), connections)
        before = server.processes.cpu()
        if rate is None:
            sample = call("run", seconds, cycle=cycle)
        else:
            sample = call("run_paced", seconds, rate, cycle=cycle)
        cpu = server.processes.cpu() - before
        call("close")
        return Run.of(sample, cpu)

    def send_all(
        self, server: Server, requests: list[bytes], *, expect: str, connections: int = 64
    ) -> None:
        """Send requests that prepare state; each must be answered with status `expect`."""
        if not requests:
            return
        call = self._generator.call
        call("keep", requests)
        call("open", *address(server.url), min(connections, len(requests)))
        sample: Sample = call("run", 600.0)
        call("close")
        if sample.codes.get(expect, 0) != len(requests):
            raise RuntimeError(
                f"{len(requests)} requests were to be answered {expect}: {dict(sample.codes)}"
            )

    def ceiling(self, beside: Server, request: bytes, *, size: int, connections: int) -> Run:
        """The largest rate of the generator itself, against a server that does next to nothing."""
        with start_rival("responder", str(size), beside=beside) as responder:
            return self.measure(responder, [request], seconds=1.5, connections=connections, cycle=True)
