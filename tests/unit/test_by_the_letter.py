"""What RFC 9110, RFC 9112 and the API's own description say, to the letter."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.http_harness import ACTION, ADMIN, DRIVER, TRIP, Client, check_problem, open_client


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async for opened in open_client():
        yield opened


def call(method: str, path: str, *headers: str, body: str = "") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: h", *headers, "", body)).encode()


@pytest.mark.parametrize("named", ["gzip, chunked", "GZIP,chunked", "x, chunked"])
async def test_a_transfer_encoding_that_is_not_known(client: Client, named: str) -> None:
    token = f"Authorization: Bearer {DRIVER}"
    data = call("POST", ACTION, token, f"Transfer-Encoding: {named}", body="2\r\n{}\r\n0\r\n\r\n")
    status, headers, problem = await client.raw(data)
    check_problem(status, headers, problem)
    assert status == 400
    assert headers["connection"] == "close"
    assert client.notes.calls == []


async def test_http_1_0_has_no_chunks(client: Client) -> None:
    """A proxy of that version takes them for a body without an end, or for the next call."""
    token = f"Authorization: Bearer {DRIVER}"
    data = call(
        "POST", ACTION, token, "Connection: keep-alive", "Transfer-Encoding: chunked",
        body="2\r\n{}\r\n0\r\n\r\n",
    )  # fmt: skip
    status, headers, problem = await client.raw(data.replace(b"HTTP/1.1", b"HTTP/1.0"))
    check_problem(status, headers, problem)
    assert status == 400
    assert "connection" not in headers  # which means its end
    assert client.notes.calls == []


async def test_chunks_are_taken(client: Client) -> None:
    body = f'{{"action":"accept","trip_request_id":"{TRIP}"}}'
    data = call(
        "POST", ACTION, f"Authorization: Bearer {DRIVER}", "Transfer-Encoding: Chunked",
        body=f"{len(body):x}\r\n{body}\r\n0\r\n\r\n",
    )  # fmt: skip
    assert (await client.raw(data))[0] == 200


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (ACTION, "POST"),
        ("/api/customer/ride/cancel", "POST"),
        ("/api/driver/ride/pending", "GET, HEAD"),
        (f"/api/driver/ride/{TRIP}", "GET, HEAD"),
        ("/healthz", "GET, HEAD"),
    ],
)
async def test_allow_lists_what_a_path_takes(client: Client, path: str, methods: str) -> None:
    for method in {"GET", "POST", "PUT", "DELETE", "OPTIONS"} - set(methods.split(", ")):
        status, headers, problem = await client.raw(call(method, path))
        check_problem(status, headers, problem)
        assert (status, headers["allow"]) == (405, methods), method


@pytest.mark.parametrize(
    "path", ["/a%0ab", "/%ff", "/a%00b", "/%zz", "//x", "/[x]", "/{", "/a%0d%0a%2f"]
)
async def test_an_unknown_path_with_odd_bytes(client: Client, path: str) -> None:
    assert (await client.raw(call("GET", path)))[0] == 404


async def test_a_whole_number_may_have_a_point(client: Client) -> None:
    body = {"action": "accept", "trip_request_id": TRIP, "version": 1.0}
    assert (await client.send("POST", ACTION, DRIVER, body))[0] == 200
    assert client.notes.calls[0][1]["version"] == 1


async def test_the_description_says_what_is_done(client: Client) -> None:
    _, _, document = await client.send("GET", "/openapi.json")
    schemas = document["components"]["schemas"]
    kinds = {each.get("type") for each in schemas["Fix"]["properties"]["recorded_at"]["anyOf"]}
    assert {"integer", "string", "null"} == kinds
    [version, _] = schemas["TripAction"]["properties"]["version"]["anyOf"]
    assert (version["minimum"], version["maximum"]) == (0, 2**31 - 1)
    assert (
        schemas["Availability"]["not"]["properties"].keys()
        == schemas["Availability"]["properties"].keys()
    )
    paths = document["paths"]
    for path, name, bounds in (
        ("/api/driver/ride/pending", "limit", (1, 100)),
        ("/api/admin/rides/abandoned", "older_than_s", (0, 31_536_000)),
    ):
        parameters = {each["name"]: each["schema"] for each in paths[path]["get"]["parameters"]}
        assert (parameters[name]["minimum"], parameters[name]["maximum"]) == bounds
    [zone] = paths["/api/admin/zones/{zone}/statistics"]["get"]["parameters"]
    assert "pattern" in zone["schema"]
    for query in ("limit=01", "limit=+1", "limit=1.5", "limit="):
        status, _, _ = await client.send("GET", f"/api/driver/ride/pending?{query}", DRIVER)
        assert status == (200 if query == "limit=1" else 400), query
    assert (await client.send("GET", "/api/admin/rides/abandoned?older_than_s=0", ADMIN))[0] == 200
