"""The balancer of docker-compose.yml before two servers: docs/deploy/haproxy.cfg as it ships."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml

from tests.harness.servers import Serve, Server, make_token
from tests.harness.valkey_nodes import free_ports

HAPROXY = shutil.which("haproxy")
ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "docs" / "deploy" / "haproxy.cfg").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
    "services"
]
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy here")

ENVIRONMENT = {
    "DISPATCHER_TRUSTED_PROXIES": "127.0.0.1/32",
    "DISPATCHER_LIMIT_ANONYMOUS": "3/60",
    "DISPATCHER_PUBLIC_PAGES": "openapi,docs",
}


@pytest.fixture
async def servers(serve: Serve) -> list[Server]:
    return [await serve(env=ENVIRONMENT), await serve(env=ENVIRONMENT)]


class Balancer(NamedTuple):
    """Where apps call it, the port of its private frontend, and its process."""

    url: str
    private: int
    process: subprocess.Popen[bytes]


@pytest.fixture
async def balancer(servers: list[Server], tmp_path: Path) -> AsyncIterator[Balancer]:
    """A balancer that runs. Its servers and ports are those of this test, all else is what ships."""
    assert HAPROXY is not None
    apps, private = free_ports(2)
    # A machine of tests may allow fewer files than a container gets.
    text = SHIPPED.replace("maxconn 20000", "maxconn 200").replace(
        "bind :8080", f"bind 127.0.0.1:{apps}"
    )
    text = text.replace("bind :8404", f"bind 127.0.0.1:{private}")
    for number, server in enumerate(servers, start=1):
        address = server.url.removeprefix("http://")
        text = text.replace(
            f"server dispatcher-{number} dispatcher-{number}:8080 resolvers docker",
            f"server dispatcher-{number} {address}",
        )
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    with (tmp_path / "haproxy.log").open("w") as log:
        process = subprocess.Popen([HAPROXY, "-db", "-f", file], stdout=log, stderr=log)
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as session:
            while True:
                assert process.poll() is None, (tmp_path / "haproxy.log").read_text()
                try:
                    async with session.get(f"http://127.0.0.1:{private}/healthz") as answer:
                        assert answer.status == 200
                    break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.02)
        yield Balancer(f"http://127.0.0.1:{apps}", private, process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def url(balancer: Balancer) -> str:
    return balancer.url


async def _is_healthy(service: str, port: int, own_port: int) -> bool:
    """Whether the health check of a service of docker-compose.yml succeeds, with another port."""
    kind, program, *arguments = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    here = [text.replace(str(port), str(own_port)) for text in arguments]
    assert here != arguments
    program = sys.executable if program == "python" else program
    process = await asyncio.create_subprocess_exec(program, *here, stderr=subprocess.DEVNULL)
    async with asyncio.timeout(30):
        return await process.wait() == 0


async def test_the_health_checks_tell_who_is_there(balancer: Balancer, servers: list[Server]) -> None:
    own_port = int(servers[0].url.rpartition(":")[2])
    assert await _is_healthy("dispatcher-1", 8080, own_port)
    assert await _is_healthy("balancer", 8404, balancer.private)
    servers[0].kill9()
    assert not await _is_healthy("dispatcher-1", 8080, own_port)
    assert await _is_healthy("balancer", 8404, balancer.private), "servers are none of its business"
    balancer.process.kill()
    balancer.process.wait()
    assert not await _is_healthy("balancer", 8404, balancer.private)


async def test_the_shipped_configuration_is_one_without_warnings(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    # The names of containers are looked up when it runs.
    file.write_text(SHIPPED)
    done = subprocess.run([str(HAPROXY), "-c", "-f", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr


async def test_calls_and_sockets_go_on_while_a_server_is_left(url: str, servers: list[Server]) -> None:
    head = {"Authorization": f"Bearer {make_token('driver-1', 'driver')}"}
    async with aiohttp.ClientSession(headers=head) as session:
        async with session.get(f"{url}/metrics") as answer:
            assert answer.status == 404
        async with session.ws_connect(f"{url}/ws") as socket:
            assert (await socket.receive_json(timeout=30))["type"]
        servers[0].kill9()
        for _ in range(8):  # both turns of the balancer, before its checks have seen anything
            async with session.get(f"{url}/readyz") as answer:
                assert answer.status == 200
        async with session.ws_connect(f"{url}/ws") as socket:
            assert (await socket.receive_json(timeout=30))["type"]
        servers[1].kill9()
        async with session.get(f"{url}/readyz") as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert answer.content_type == "application/problem+json"
            assert (await answer.json())["response_code"] == "service_unavailable"


async def test_limits_count_the_client_and_not_what_it_says(url: str) -> None:
    statuses: dict[str, list[int]] = {}
    for client in ("127.0.0.2", "127.0.0.3"):
        connector = aiohttp.TCPConnector(local_addr=(client, 0))
        async with aiohttp.ClientSession(connector=connector) as session:
            for number in range(5):
                forged = {"X-Forwarded-For": f"198.51.100.{number}"}
                async with session.get(f"{url}/api/driver/ride/pending", headers=forged) as answer:
                    statuses.setdefault(client, []).append(answer.status)
    assert statuses == dict.fromkeys(("127.0.0.2", "127.0.0.3"), [401] * 3 + [429] * 2)
