"""A whole server on a real cluster: it starts while a node is away, and serves the zones of the others."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp

from tests.harness.servers import Serve, make_token
from tests.harness.valkey_nodes import ValkeyCluster, zones_on_each_node

ZONES = [zones[0] for zones in zones_on_each_node()]


async def _create(session: aiohttp.ClientSession, zone: str) -> int:
    body = {"pickup": {"lat": 40.7, "lng": -74.0}, "zone": zone}
    token = make_token(f"customer-{zone}", "customer")
    headers = {"Authorization": f"Bearer {token}"}
    async with session.post("/api/customer/ride/create", json=body, headers=headers) as answer:
        return answer.status


async def test_a_node_is_away_when_a_server_starts(
    serve: Serve, cluster: ValkeyCluster, tmp_path: Path
) -> None:
    zones_file = tmp_path / "zones.toml"
    zones_file.write_text("".join(f"[zones.{zone}]\n" for zone in ZONES))
    broken, *others = ZONES
    node = await cluster.primary_of(broken)
    node.signal(signal.SIGKILL)
    server = await serve(
        env={"DISPATCHER_REDIS_URL": cluster.url, "DISPATCHER_ZONES_FILE": str(zones_file)}
    )
    async with aiohttp.ClientSession(server.url) as session, asyncio.timeout(60):
        assert [await _create(session, zone) for zone in others] == [201, 201]
        await cluster.take_over(node)
        while await _create(session, broken) != 201:
            await asyncio.sleep(0.05)
