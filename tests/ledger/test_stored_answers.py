"""Idempotency keys in the commit: one effect per key, and the stored answer for everyone else."""

from __future__ import annotations

from dispatcher.core.idempotency import IdempotencyKey
from tests.ledger.harness import (
    AT_MS,
    DAY_MS,
    LedgerDatabase,
    accept,
    create,
    driver,
    key_of,
    keyed,
    start_with,
    step,
)


async def test_a_key_has_one_effect_and_its_answer_byte_for_byte(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), driver())
    body = '{"b": 1,  "a":"ü\\u00fc\\n"}'
    change = keyed(accept(), key_of(), body)
    assert await ledger.commit(change) == [("ok", None, None)]
    # The trip has moved on, so the guards would refuse: the answer is given all the same.
    for _ in range(2):
        assert await ledger.commit(change) == [("replay", 200, body)]
    assert await ledger.trip("z_1") == ("accepted", 1, "d1")
    assert await ledger.history("z_1") == [(0, "created"), (1, "accepted")]
    assert await ledger.one(
        "SELECT user_id, endpoint, idempotency_key, zone, request_payload, request_fingerprint,"
        " response_payload, status_code FROM idempotency_keys"
    ) == ("d1", "/act", "k1", "z", '{"a": 1}', key_of().fingerprint, body, 200)


async def test_a_used_key_stops_a_change_whose_guards_hold(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), create("z_2"), driver(), keyed(accept(), key_of()))
    await start_with(ledger, step("z_1", 1, "released"))
    again = keyed(accept("z_2"), key_of(asked="y"), "other")
    rows = await ledger.send(again)
    assert tuple(rows[0])[1:] == ("replay", 200, "{}", key_of().fingerprint)
    assert await ledger.trip("z_2") == ("pending", 0, None)


async def test_keys_are_of_their_user_and_endpoint(ledger: LedgerDatabase) -> None:
    one, other = key_of(), key_of(user="d2")
    elsewhere = IdempotencyKey("d1", "/create", "k1", one.fingerprint, b"{}")
    changes = [keyed(create(f"z_{i}"), key) for i, key in enumerate((one, other, elsewhere))]
    assert await ledger.outcomes(*changes) == ["ok"] * 3
    assert await ledger.count("idempotency_keys") == 3


async def test_an_expired_key_is_a_new_one(ledger: LedgerDatabase) -> None:
    await start_with(ledger, keyed(create(), key_of(), "old", AT_MS - DAY_MS))
    fresh = keyed(create("z_2"), key_of(asked="y"), "new")
    assert await ledger.commit(fresh) == [("ok", None, None)]
    assert await ledger.one("SELECT response_payload, request_fingerprint FROM idempotency_keys") == (
        "new",
        key_of(asked="y").fingerprint,
    )
    assert await ledger.commit(fresh) == [("replay", 200, "new")]


async def test_an_expired_key_is_no_answer(ledger: LedgerDatabase) -> None:
    await start_with(ledger, keyed(create(), key_of(), "old", AT_MS - DAY_MS))
    assert await ledger.commit(keyed(create(), key_of())) == [("stale", None, None)]
