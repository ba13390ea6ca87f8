"""What strangers may see is a choice, and metrics may have an address of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.harness.servers import Serve


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def status_of(client: aiohttp.ClientSession, url: str) -> int:
    async with client.get(url) as response:
        return response.status


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_metrics_on_an_address_of_their_own(serve: Serve, workers: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    env = {"DISPATCHER_PUBLIC_PAGES": "docs, metrics", "DISPATCHER_METRICS_ADDRESS": address}
    server = await serve("--workers", workers, env=env)
    async with aiohttp.ClientSession() as client:
        shown = {"/metrics": 404, "/openapi.json": 404, "/docs": 200, "/healthz": 200}
        for path, status in shown.items():
            assert await status_of(client, server.url + path) == status, path
        async with client.get(f"http://{address}/metrics") as response:
            assert response.status == 200
            assert "dispatcher_connections " in await response.text()
        for path in ("/docs", "/healthz", "/api/driver/ride/pending"):
            assert await status_of(client, f"http://{address}{path}") == 404
    assert await server.stop() == 0


async def test_all_pages_are_public_where_nothing_is_said(serve: Serve) -> None:
    server = await serve()
    async with aiohttp.ClientSession() as client:
        for path in ("/metrics", "/openapi.json", "/docs"):
            assert await status_of(client, server.url + path) == 200
    assert await server.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_address_that_is_taken_is_refused_by_name(
    redis_url: str, database_url: str, data_dir: Path, workers: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-m", "dispatcher", "serve", "--workers", workers],
            env={
                "PATH": "/usr/bin:/bin",
                "DISPATCHER_PORT": "0",
                "DISPATCHER_DATA_DIR": str(data_dir),
                "DISPATCHER_REDIS_URL": redis_url,
                "DISPATCHER_DATABASE_URL": database_url,
                "DISPATCHER_JWT_SECRET": "a-secret-for-tests-with-more-than-32-bytes",
                "DISPATCHER_METRICS_ADDRESS": f"127.0.0.1:{taken.getsockname()[1]}",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: DISPATCHER_METRICS_ADDRESS: ")
    assert "Traceback" not in done.stderr
