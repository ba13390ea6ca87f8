"""Over HTTP: how an Idempotency-Key is read, and what its fingerprint is of."""

from __future__ import annotations

import pytest

from dispatcher.web.idempotency_key import unquote
from tests.unit.http_harness import (
    ACTION,
    ADMIN,
    CANCEL,
    CUSTOMER,
    DRIVER,
    GOOD,
    LOCATION,
    OFFER,
    Client,
    open_client,
)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("k1", "k1"), ('"k1"', "k1"), (r'"a\"b\\c"', r'a"b\c'), ('a"b', 'a"b'), ("a b", "a b"),
        ("x" * 255, "x" * 255), ('"' + "x" * 255 + '"', "x" * 255), ("{}:/", "{}:/"),
        ('"', None), ('""', None), ('"a', None), ('"a"b', None), ('"a\\n"', None), ("x" * 256, None),
        ('"' + "x" * 256 + '"', None), ("é", None), ("", None), ("a\x01", None), ("a\n", None),
        ("a\x7f", None), ('"a", "b"', None),
    ],
)  # fmt: skip
def test_how_keys_are_read(sent: str, meant: str | None) -> None:
    assert unquote(sent) == meant


async def test_keys(client: Client) -> None:
    _, headers, _ = await client.good(ACTION, headers={"Idempotency-Key": '"k 1"'})
    assert headers["Idempotency-Key"] == '"k 1"'
    assert client.notes.calls[-1][1]["key"].key == "k 1"
    for bad in ("x" * 256, "é", '"open', ""):
        await client.refused(
            "invalid_idempotency_key", ACTION, *GOOD[ACTION], headers={"Idempotency-Key": bad}
        )
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    await client.refused("duplicate_idempotency_key", ACTION, *GOOD[ACTION], more_headers=twice)
    deep = b'{"action":"accept","trip_request_id":"default_x","z":' + b"[" * 600 + b"]" * 600 + b"}"
    await client.refused("invalid_body", ACTION, DRIVER, deep, headers={"Idempotency-Key": "k"})


async def test_fingerprints(client: Client) -> None:
    async def fingerprint(path: str, token: str, body: bytes) -> str:
        await client.send("POST", path, token, body, headers={"Idempotency-Key": "k"})
        return str(client.notes.calls[-1][1]["key"].fingerprint)

    body = b'{"action":"accept","trip_request_id":"default_x"}'
    first = await fingerprint(ACTION, DRIVER, body)
    assert first == await fingerprint(
        ACTION, DRIVER, b' { "trip_request_id":"default_x", "action": "accept"}'
    )
    assert first == await fingerprint(
        ACTION, DRIVER, b'{"action":"start","action":"accept","trip_request_id":"default_x"}'
    )
    assert first != await fingerprint(ACTION, DRIVER, body[:-1] + b',"reason":"1"}')
    cancel = b'{"trip_request_id":"default_x"}'
    mine, admins = (
        await fingerprint(CANCEL, CUSTOMER, cancel),
        await fingerprint("/api/admin/ride/cancel", ADMIN, cancel),
    )
    assert mine != admins


async def test_keys_may_be_required() -> None:
    async for client in open_client(idempotency_required=True):
        for path, sent in GOOD.items():
            if path in (LOCATION, OFFER):  # the same again is the same anyway
                assert (await client.good(path))[0] == 200
            else:
                await client.refused("missing_idempotency_key", path, *sent)
