"""Over HTTP: who calls, from where, and what their calls are counted as."""

from __future__ import annotations

import time
from ipaddress import ip_network
from typing import Any

import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import StoreUnavailable
from dispatcher.service.answers import RateLimited
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.endpoints import ENDPOINTS
from tests.harness.servers import make_token
from tests.unit.http_harness import (
    ACTION,
    CREATE,
    DRIVER,
    GOOD,
    LOCATION,
    TRIP,
    Client,
    check_problem,
    open_client,
    state,
)


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.role], ids=lambda e: e.name)
async def test_every_endpoint_wants_its_role(client: Client, endpoint: Any) -> None:
    path = endpoint.path.replace("{id}", TRIP).replace("{zone}", "default")
    for token, code in (
        (None, "missing_token"),
        ("nonsense", "invalid_token"),
        (make_token("d1", endpoint.role, exp=int(time.time()) - 60), "token_expired"),
        (
            make_token("x", "customer" if "admin" in (endpoint.role, endpoint.also) else "admin"),
            "wrong_role",
        ),
    ):
        status, headers, problem = await client.send(endpoint.method, path, token, b"{}")
        check_problem(status, headers, problem)
        assert problem["response_code"] == code
        assert ("WWW-Authenticate" in headers) == (status == 401)
        assert headers["X-RateLimit-Limit"] == "10"
    assert [c[0] for c in client.notes.counted] == ["anonymous"] * 3 + ["general"]
    assert client.notes.counted[0][2] == "127.0.0.1"
    assert client.notes.calls == []


async def test_a_flood_of_strangers_is_limited(client: Client) -> None:
    client.notes.limit = RateLimited(state("anonymous", 0))
    for method, path in (("GET", "/nope"), ("POST", CREATE), ("PUT", CREATE)):
        status, headers, _ = await client.send(method, path)
        assert (status, headers["Retry-After"]) == (429, "42")


async def test_known_users_are_counted_as_themselves(client: Client) -> None:
    await client.send("GET", "/nope", DRIVER)
    await client.send("POST", ACTION, DRIVER, b"{")
    assert [c[:2] for c in client.notes.counted] == [("general", "d1")] * 2


async def test_what_the_services_count_is_not_counted_twice(client: Client) -> None:
    for path in GOOD:
        assert (await client.good(path))[0] == 200
    assert client.notes.counted == []


async def test_refusals_that_need_no_store(client: Client) -> None:
    client.notes.limit = StoreUnavailable()
    assert (await client.send("GET", "/nope"))[0] == 404
    assert (await client.send("POST", CREATE))[0] == 401


async def test_drivers_are_seen(client: Client) -> None:
    await client.good(LOCATION, headers={"User-Agent": "app/1"})
    await client.good(CREATE)
    assert client.seen == [(Actor("d1", Role.DRIVER), "127.0.0.1", "app/1")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client_ip"),
    [
        ("1.2.3.4", "", "1.2.3.4"),
        ("1.2.3.4", "9.9.9.9", "1.2.3.4"),
        ("10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "6.6.6.6, 9.9.9.9, 10.0.0.2", "9.9.9.9"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "9.9.9.9, garbage", "10.0.0.1"),
        ("10.0.0.1", "garbage, 9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", " ,, ", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9:1234", "9.9.9.9"),
        ("10.0.0.1", "[2001:db8:1:2:3::4]:80", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:aaaa::1", "", "2001:db8:1:2::/64"),
        ("::ffff:1.2.3.4", "", "1.2.3.4"),
        ("::ffff:10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("fe80::1%eth0", "", "fe80::/64"),
    ],
)
def test_whose_address(peer: str, forwarded: str, client_ip: str) -> None:
    assert ClientIp([ip_network("10.0.0.0/8")]).of(peer, forwarded) == client_ip


async def test_forwarded_headers(client: Client) -> None:
    await client.send("GET", "/nope", headers={"X-Forwarded-For": "9.9.9.9"})
    assert client.notes.counted[-1][2] == "127.0.0.1"
    async for behind in open_client(trusted_proxies="127.0.0.0/8"):
        several = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "9.9.9.9")]
        await behind.send("GET", "/nope", more_headers=several)
        assert behind.notes.counted[-1][2] == "9.9.9.9"
