"""The one road of every change of state: claim, commit, settle."""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from dispatcher.core.actors import Actor
from dispatcher.core.errors import OutcomeUnknown, Refusal, StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.limits import Limit
from dispatcher.ledger.commits import Change, Ledger, Outcome
from dispatcher.ledger.database import Database
from dispatcher.live.keys import Keys
from dispatcher.live.scripts import Attempt, Scripts, Settlement, Verdict
from dispatcher.live.settle import Settler
from dispatcher.observe.refusal_log import log_refusal
from dispatcher.service.answers import Answer, RateLimited, refusal_answer, refused, replay_of
from dispatcher.service.rehydration import Picture, done_record

log = structlog.get_logger("dispatcher.road")

#: A claim is asked for this often at most: cold zone, unknown trip, driver and key, and other
#: changes of the same trip to wait for. Waits double from 5 ms, so all of them last some 2 s.
_ROUNDS: Final = 16
_FIRST_WAIT_S: Final = 0.005
_LONGEST_WAIT_S: Final = 0.25
#: How often a change is planned anew because Postgres knew better than the picture.
_PLANS: Final = 3

Claim = Callable[[Attempt], Awaitable[Verdict]]


@dataclass(slots=True)
class Plan:
    """What a claimed change is to do: the row for the ledger and the news for the picture."""

    change: Change
    settlement: Settlement
    status: int
    body: bytes


class Road:
    """Takes requests from claim to settle. The steps are the same for every kind of change."""

    def __init__(
        self,
        *,
        scripts: Scripts,
        picture: Picture,
        ledger: Ledger,
        settler: Settler,
        database: Database,
        lease_ms: int,
        key_ttl_s: int,
        halt_at: str = "",
    ) -> None:
        self.scripts = scripts
        self.picture = picture
        self.database = database
        self._ledger = ledger
        self._settler = settler
        self._lease_ms = lease_ms
        self._key_ttl_ms = key_ttl_s * 1000
        self._halt_at = halt_at
        self.node = secrets.token_hex(6)
        self._count = itertools.count(1)

    def attempt(
        self,
        trip_id: str,
        driver_id: str,
        key: IdempotencyKey | None,
        limits: Sequence[Limit],
    ) -> Attempt:
        """A new attempt with a token of its own."""
        return Attempt(
            token=f"{self.node}.{next(self._count)}",
            trip_id=trip_id,
            driver_id=driver_id,
            lease_ms=self._lease_ms,
            key=key,
            key_ttl_ms=self._key_ttl_ms,
            limits=limits,
        )

    async def travel(
        self,
        keys: Keys,
        actor: Actor,
        attempt: Attempt,
        claim: Claim,
        plan: Callable[[Verdict], Plan],
    ) -> Answer:
        """Claims, commits and settles one change; the answer leaves once it is durable.

        Raises StoreUnavailable where neither engine could decide, OutcomeUnknown where the commit's
        answer was lost and Postgres could not be asked.
        """
        for _ in range(_PLANS):
            verdict = await self._claim(keys, attempt, claim)
            if isinstance(verdict, Answer):
                return verdict
            if verdict.code != "claimed":
                return self._refuse(verdict, actor, attempt)
            await self._halt("after_claim")
            planned = plan(verdict)
            outcome = await self._commit(keys, attempt, planned)
            if outcome.code == "ok":
                await self._halt("after_commit")
                return await self._settle(keys, attempt, planned, verdict)
            await self._let_go(keys, attempt, outcome)
            if outcome.code == "replay":
                return _replay(attempt, outcome, verdict)
            # Someone was faster in Postgres: the picture is stale. Look again, with its news.
            log_refusal(
                "version_conflict", trip_id=attempt.trip_id, user=actor.user_id, source="postgres"
            )
            await self._refresh(keys, attempt)
            attempt.resolved += "l"
        return refused("trip_busy", "", "", None)

    async def _claim(self, keys: Keys, attempt: Attempt, claim: Claim) -> Verdict | Answer:
        wait_s = _FIRST_WAIT_S
        for _ in range(_ROUNDS):
            verdict = await claim(attempt)
            match verdict.code:
                case "cold":
                    await self.picture.warm(keys.zone)
                case "key_unresolved":
                    assert attempt.key is not None
                    stored = await self.picture.answer_of(keys, attempt.key)
                    if stored is not None:
                        return _replay(attempt, stored, verdict)
                    attempt.resolved += "k"
                case "trip_unknown":
                    if await self.picture.load_trip(keys, attempt.trip_id) is None:
                        attempt.resolved += "t"
                case "driver_unknown":
                    if not await self.picture.load_driver(keys, attempt.driver_id):
                        attempt.resolved += "d"
                case "driver_moved":
                    attempt.trip_id = verdict.detail[0]
                case "trip_busy":
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                case _:
                    return verdict
        return refused("trip_busy", "", "", None)

    def _refuse(self, verdict: Verdict, actor: Actor, attempt: Attempt) -> Answer:
        code, detail = verdict.code, verdict.detail
        if code == "replay":
            return replay_of(detail[0], verdict.limit)
        if code == "rate_limited":
            assert verdict.limit is not None
            log_refusal("rate_limit_exceeded", limit_class=verdict.limit.name, user=actor.user_id)
            return refusal_answer(RateLimited(verdict.limit))
        if code == "key_reused":
            return refusal_answer(Refusal("idempotency_key_reused"), verdict.limit)
        version, status = (detail[0], detail[1]) if len(detail) > 1 else ("", "")
        log_refusal(code, trip_id=attempt.trip_id, user=actor.user_id, version=version)
        return refused(code, version, status, verdict.limit)

    async def _commit(self, keys: Keys, attempt: Attempt, planned: Plan) -> Outcome:
        try:
            return await self._ledger.commit(planned.change)
        except OutcomeUnknown:
            if await self._was_committed(attempt, planned.change):
                return Outcome("ok")
            # It may still be under way: the claim is left to its lease, the sweeper will look.
            raise
        except Exception:
            await self._drop_claims(keys, attempt)
            raise

    async def _was_committed(self, attempt: Attempt, change: Change) -> bool:
        """Whether this very attempt is in the history, or its key's row holds its answer."""
        try:
            if change.event is not None:
                version = 0 if change.expect_version is None else change.expect_version + 1
                row = await self.database.row(
                    "event_of_attempt",
                    trip_id=change.trip_id, version=version, attempt=attempt.token,
                )  # fmt: skip
                return row is not None
            if attempt.key is not None:
                row = await self.database.row(
                    "get_answer",
                    user_id=attempt.key.user_id, endpoint=attempt.key.endpoint, key=attempt.key.key,
                )  # fmt: skip
                return row is not None and row["response_payload"] == change.response
        except StoreUnavailable:
            pass
        return False

    async def _settle(self, keys: Keys, attempt: Attempt, planned: Plan, verdict: Verdict) -> Answer:
        settlement = planned.settlement
        if attempt.key is not None:
            settlement.answer = done_record(
                attempt.key.fingerprint, planned.status, planned.body.decode()
            )
        await self._tell(keys, attempt, settlement)
        return Answer(planned.status, planned.body, verdict.limit)

    async def announce(self, keys: Keys, attempt: Attempt, settlement: Settlement) -> None:
        """Tells another zone of a change that was committed by way of this one."""
        await self._tell(keys, replace(attempt, trip_id="", key=None), settlement)

    async def _tell(self, keys: Keys, attempt: Attempt, settlement: Settlement) -> None:
        try:
            await self._settler.settle(keys, attempt, settlement)
        except StoreUnavailable as error:
            # It is durable, so it is answered; the sweeper or the next load brings Redis along.
            log.warning(
                "committed but not settled", zone=keys.zone, trip_id=attempt.trip_id,
                token=attempt.token, reason=str(error),
            )  # fmt: skip

    async def _let_go(self, keys: Keys, attempt: Attempt, outcome: Outcome) -> None:
        await self._drop_claims(keys, attempt)
        if outcome.code == "replay" and attempt.key is not None:
            await self.picture.answer_of(keys, attempt.key)

    async def _drop_claims(self, keys: Keys, attempt: Attempt) -> None:
        try:
            await self.scripts.release_claim(keys, attempt)
        except StoreUnavailable:
            log.warning("claim left to its lease", trip_id=attempt.trip_id, token=attempt.token)

    async def _refresh(self, keys: Keys, attempt: Attempt) -> None:
        if attempt.trip_id:
            await self.picture.load_trip(keys, attempt.trip_id)
        if attempt.driver_id:
            await self.picture.load_driver(keys, attempt.driver_id)

    async def _halt(self, point: str) -> None:
        if self._halt_at == point:
            log.warning("halted", point=point)
            await asyncio.Event().wait()


def _replay(attempt: Attempt, outcome: Outcome, verdict: Verdict) -> Answer:
    assert attempt.key is not None
    if outcome.fingerprint != attempt.key.fingerprint:
        return refusal_answer(Refusal("idempotency_key_reused"), verdict.limit)
    assert outcome.status is not None
    assert outcome.response is not None
    return Answer(outcome.status, outcome.response.encode(), verdict.limit, replayed=True)
