"""What the API's description says is what is done: schemathesis asks every operation, with the tokens it takes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import orjson
import pytest

from dispatcher.web.endpoints import ENDPOINTS, Endpoint
from tests.harness.description import Description
from tests.harness.servers import Serve, make_token

#: Refusals that a request of the right form can meet. The description says of which form a request must
#: be, and not whose the trip is, or which key was used before; nor, where one is named, which zones there are.
_ZONE_IS_NAMED = (
    "/api/customer/ride/create", "/api/driver/availability", "/api/admin/rides", "/api/admin/drivers",
    "/api/admin/rides/abandoned", "/api/admin/why", "/api/admin/zones/{zone}/statistics",
    "/api/admin/zones/{zone}/pending", "/api/admin/zones/{zone}/dead-letters",
    "/api/zones/{zone}/heat",
)  # fmt: skip
_CONFIGURATION = """
[checks.positive_data_acceptance]
expected-statuses = [200, 201, 202, 302, 403, 404, 409, 422]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 426, 429]
""" + "".join(
    f"""
[[operations]]
include-path = "{path}"
checks.positive_data_acceptance.expected-statuses = [200, 201, 400, 403, 404, 409, 422]
"""
    for path in _ZONE_IS_NAMED
)
_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,positive_data_acceptance,unsupported_method,"
    "allow_header_conformance"
)


def _is_asked(endpoint: Endpoint, role: str) -> bool:
    """Whether the role may call it; what takes no token is asked once."""
    return endpoint.path != "/ws" and role in (endpoint.role or "customer", endpoint.also)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("role", ["driver", "customer", "admin"])
async def test_what_is_described_is_what_is_done(serve: Serve, tmp_path: Path, role: str) -> None:
    wide = {
        f"DISPATCHER_LIMIT_{name}": "100000/60"
        for name in ("GENERAL", "OPERATOR", "TRIP_ACCEPT", "TRIP_CANCEL", "LOCATION_UPDATE", "ANONYMOUS")
    }
    server = await serve(env={**wide, "DISPATCHER_LIMIT_CONNECTION": "100000/1"})
    # Tokens of other roles are refused alike by all operations; the test below has each.
    asked = [
        f"--include-operation-id={endpoint.name}" for endpoint in ENDPOINTS if _is_asked(endpoint, role)
    ]
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(_CONFIGURATION)
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(configuration), "run",
        f"{server.url}/openapi.json", "--checks", _CHECKS, "--phases", "examples,coverage,fuzzing",
        "--max-examples", "8", "--workers", "1", "--seed", "7", "--no-color", *asked,
        "--header", f"Authorization: Bearer {make_token('d1', role)}",
    ]  # fmt: skip
    run = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=170
    )
    assert run.returncode == 0, run.stdout[-6_000:] + run.stderr[-2_000:]


async def test_refusals_and_pages_are_as_described(serve: Serve) -> None:
    """Headers and codes of what a walk through successes does not meet."""
    server = await serve(
        env={"DISPATCHER_LIMIT_GENERAL": "10000/60", "DISPATCHER_LIMIT_ANONYMOUS": "10000/60"}
    )
    endpoints = {endpoint.name: endpoint for endpoint in ENDPOINTS}
    seen: set[tuple[str, int]] = set()
    async with aiohttp.ClientSession(server.url) as session:
        description = Description(await (await session.get("/openapi.json")).json())

        async def ask(
            name: str, user: str = "", *, role: str = "", data: bytes | None = None,
            headers: Mapping[str, str] = MappingProxyType({}), **parameters: str,
        ) -> tuple[int, Any]:  # fmt: skip
            endpoint = endpoints[name]
            path = endpoint.path.format(**parameters)
            query = {k: v for k, v in parameters.items() if f"{{{k}}}" not in endpoint.path}
            sent = {"Content-Type": "application/json"} if data is not None else {}
            if user:
                sent["Authorization"] = f"Bearer {make_token(user, role or endpoint.role or 'admin')}"
            async with session.request(
                endpoint.method, path, data=data, params=query, headers={**sent, **headers},
                allow_redirects=False,
            ) as response:  # fmt: skip
                raw = await response.read()
            description.check(endpoint, response.status, response.headers, raw)
            seen.add((name, response.status))
            is_json = response.content_type.endswith("json")
            return response.status, orjson.loads(raw) if raw and is_json else response.headers

        async def refused(code: str, name: str, user: str = "", **more: Any) -> None:
            _, problem = await ask(name, user, **more)
            assert problem["response_code"] == code, (name, problem)

        # Each endpoint without a token, with a wrong one, and with one of another role.
        parts = {"id": "default_none", "driver_id": "nobody", "zone": "nowhere", "file": "none"}
        for endpoint in ENDPOINTS:
            if endpoint.role is not None:
                of_path = {k: v for k, v in parts.items() if f"{{{k}}}" in endpoint.path}
                body = {"data": b"{}"} if endpoint.body else {}
                await refused("missing_token", endpoint.name, **body, **of_path)
                wrong = {"Authorization": "Bearer nonsense", "Idempotency-Key": "k"}
                wrong = wrong if endpoint.body else {"Authorization": wrong["Authorization"]}
                await refused("invalid_token", endpoint.name, headers=wrong, **body, **of_path)
                other = "driver" if endpoint.role == "customer" else "customer"
                await refused("wrong_role", endpoint.name, "u1", role=other, **body, **of_path)
                await ask(endpoint.name, "u1", **body, **of_path)
            if endpoint.body:
                keyed = {"Idempotency-Key": "k"}
                for data in (b"{", b"[]", b"x" * 70_000):
                    await ask(endpoint.name, "u1", data=data, headers=keyed, **of_path)
                await refused("unsupported_media_type", endpoint.name, "u1", data=b"{}",
                              headers={**keyed, "Content-Type": "text/plain"})  # fmt: skip
        # Keys: one that is replayed as a refusal, and one that is reused.
        online = {
            "is_online": True,
            "availability_status": "available",
            "location": {"lat": 1, "lng": 2},
        }
        await ask("availability", "d1", data=orjson.dumps(online))
        _, created = await ask("create", "c1", data=b'{"pickup": {"lat": 1, "lng": 2}}')
        trip = created["trip"]["id"]
        action = orjson.dumps({"action": "accept", "trip_request_id": trip, "version": 9})
        for _ in range(2):
            await refused("version_conflict", "trip_action", "d1", data=action,
                          headers={"Idempotency-Key": "one"})  # fmt: skip
        accept = orjson.dumps({"action": "accept", "trip_request_id": trip})
        await refused("idempotency_key_reused", "trip_action", "d1", data=accept,
                      headers={"Idempotency-Key": "one"})  # fmt: skip
        # An operator's offer to a driver who has declined.
        decline = orjson.dumps({"action": "decline", "trip_request_id": trip})
        await ask("trip_action", "d1", data=decline)
        offer = orjson.dumps({"trip_request_id": trip, "driver_id": "d1"})
        _, problem = await ask("offer", "op", data=offer, headers={"Idempotency-Key": "o"})
        assert problem["response_code"] == "driver_not_eligible"
        assert problem["filters"]
        for _ in range(12):
            await ask("trip_action", "d1", data=accept)
        assert ("trip_action", 429) in seen
        # Pages.
        await refused("upgrade_required", "websocket", "d1", role="driver")
        await ask("root")
        for name, files in (
            ("console", ["console.js", "app.js", "none.js"]),
            ("docs", ["docs.js", "none"]),
        ):
            for page, more in ((name, {}), *((f"{name}_file", {"file": file}) for file in files)):
                status, headers = await ask(page, **more)
                if status == 200:
                    tag = {"If-None-Match": headers["ETag"]}
                    assert (await ask(page, headers=tag, **more))[0] == 304
        for name in ("console", "console_file", "docs", "docs_file"):
            assert (name, 304) in seen
        assert {("console_file", 404), ("docs_file", 404)} <= seen
