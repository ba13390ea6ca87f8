"""Claims over Postgres: what this process holds, over rows that a test sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.limits import Limit, Rate
from dispatcher.live.claim_results import ClaimCode, CreationClaimed, Refused
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import keys_of
from dispatcher.service import held_subjects
from dispatcher.service.ledger_claims import LedgerClaims
from dispatcher.service.ledger_decider import LedgerDecider
from dispatcher.service.ledger_rows import Found, Wanted
from dispatcher.service.local_limits import LocalLimits

KEYS = keys_of("default")
LIMITS = (Limit("general", "rider", Rate(2, 60), "default"),)


class Rows:
    """No trip is there; a look fails while it is told to."""

    fails = False

    async def look(self, wanted: Wanted) -> Found:
        if self.fails:
            raise StoreUnavailable("postgres")
        return Found(1)


class Checks(LocalLimits):
    """Limits that count how often they are asked."""

    checked = recorded = 0

    def check(self, limits):  # type: ignore[no-untyped-def]
        self.checked += 1
        return super().check(limits)

    def record(self, limits, state):  # type: ignore[no-untyped-def]
        self.recorded += 1
        return super().record(limits, state)


def attempt(number: int, *, key: str = "", lease_ms: int = 1000) -> Attempt:
    return Attempt(
        token=f"node.{number}",
        trip_id=f"default_{number}",
        driver_id="",
        lease_ms=lease_ms,
        key=IdempotencyKey("rider", "/create", key, "f" * 64) if key else None,
        key_ttl_ms=1000,
        limits=LIMITS,
    )


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def limits() -> Checks:
    return Checks(lambda: 1)


@pytest.fixture
def claims(rows: Rows, limits: Checks) -> Iterator[LedgerClaims]:
    yield LedgerClaims(rows, limits)  # type: ignore[arg-type]


async def test_a_claim_is_checked_once_and_counted_once(claims: LedgerClaims, limits: Checks) -> None:
    granted = await claims.claim_creation(KEYS, attempt(1))
    assert isinstance(granted, CreationClaimed)
    assert granted.limit is not None
    assert granted.limit.remaining == 1
    assert (limits.checked, limits.recorded) == (1, 1)


async def test_a_look_that_fails_and_one_to_be_repeated_count_for_nothing(
    claims: LedgerClaims, rows: Rows
) -> None:
    rows.fails = True
    for number in range(3):
        with pytest.raises(StoreUnavailable):
            await claims.claim_creation(KEYS, attempt(number))
    rows.fails = False
    assert isinstance(await claims.claim_creation(KEYS, attempt(1)), CreationClaimed)
    for _ in range(3):
        busy = await claims.claim_creation(KEYS, attempt(1))
        assert busy.code is ClaimCode.TRIP_BUSY  # type: ignore[union-attr]
    assert isinstance(await claims.claim_creation(KEYS, attempt(2)), CreationClaimed)
    limited = await claims.claim_creation(KEYS, attempt(3))
    assert isinstance(limited, Refused)
    assert limited.code is ClaimCode.RATE_LIMITED


async def test_a_change_that_could_not_be_committed_is_given_back(claims: LedgerClaims) -> None:
    decider = LedgerDecider(claims, lambda *_: None)
    for number in range(4):
        each = attempt(number)
        granted = await claims.claim_creation(KEYS, each)
        assert isinstance(granted, CreationClaimed)
        await decider.release(KEYS, each, gives_back=True)
    for number in (4, 5):
        each = attempt(number)
        assert isinstance(await claims.claim_creation(KEYS, each), CreationClaimed)
        await decider.release(KEYS, each)
    limited = await claims.claim_creation(KEYS, attempt(6))
    assert isinstance(limited, Refused)
    assert limited.code is ClaimCode.RATE_LIMITED


async def test_the_key_comes_before_the_limits(claims: LedgerClaims) -> None:
    for number in (1, 2):
        assert isinstance(
            await claims.claim_creation(KEYS, attempt(number, key=f"k{number}")), CreationClaimed
        )
    twin = await claims.claim_creation(KEYS, attempt(3, key="k1"))
    assert isinstance(twin, Refused)
    assert twin.code is ClaimCode.REQUEST_IN_PROGRESS


async def test_what_is_held_is_bounded(claims: LedgerClaims, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_subjects, "_MAX_HELD", 3)
    free = [each._replace(limits=()) for each in map(attempt, range(5))]
    for each in free[:3]:
        assert isinstance(await claims.claim_creation(KEYS, each), CreationClaimed)
    with pytest.raises(StoreUnavailable, match="too many claims"):
        await claims.claim_creation(KEYS, free[3])
    claims.drop(free[0])
    assert isinstance(await claims.claim_creation(KEYS, free[3]), CreationClaimed)


async def test_leases_that_are_over_leave_room(
    claims: LedgerClaims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_subjects, "_MAX_HELD", 3)
    for number in range(5):
        over = attempt(number, lease_ms=0)._replace(limits=())
        assert isinstance(await claims.claim_creation(KEYS, over), CreationClaimed)
