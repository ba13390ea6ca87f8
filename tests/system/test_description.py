"""What the API's description says is what is done: schemathesis asks every operation, with tokens of each role."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.timeout(180)
@pytest.mark.parametrize("role", ["driver", "customer", "admin"])
async def test_what_is_described_is_what_is_done(serve: Serve, tmp_path: Path, role: str) -> None:
    wide = {
        f"DISPATCHER_LIMIT_{name}": "100000/60"
        for name in ("GENERAL", "OPERATOR", "TRIP_ACCEPT", "TRIP_CANCEL", "LOCATION_UPDATE", "ANONYMOUS")
    }
    server = await serve(env={**wide, "DISPATCHER_LIMIT_CONNECTION": "100000/1"})
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(_CONFIGURATION)
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(configuration), "run",
        f"{server.url}/openapi.json", "--checks", _CHECKS, "--phases", "examples,coverage,fuzzing",
        "--max-examples", "8", "--workers", "1", "--seed", "7", "--no-color", "--exclude-path", "/ws",
        "--header", f"Authorization: Bearer {make_token('d1', role)}",
    ]  # fmt: skip
    run = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=170
    )
    assert run.returncode == 0, run.stdout[-6_000:] + run.stderr[-2_000:]
