"""The one way of every change of state: claim, commit, settle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from dataclasses import replace
from typing import Any, Final

import structlog

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.core.idempotency import KeyedAnswer, StoredAnswer
from dispatcher.ledger.changes import Change, Outcome, OutcomeCode
from dispatcher.ledger.commits import Commits, was_committed
from dispatcher.ledger.database import Database
from dispatcher.live.claim_results import (
    ClaimCode,
    NotClaimed,
    Refused,
    Replayed,
    Unresolved,
)
from dispatcher.live.claims import Attempt, ClaimScripts, Resolved
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.settle import Settlement, Settler
from dispatcher.observe.refusal_log import log_refusal
from dispatcher.service.answers import (
    Answer,
    claim_refusal,
    rate_limited_answer,
    refused_answer,
    replayed_answer,
    stored_answer,
)
from dispatcher.service.commands.command import ClaimedT, Command, Plan, SideEffects
from dispatcher.service.rate_limits import RateLimits, log_limited
from dispatcher.service.rehydration import Rehydration

log = structlog.get_logger("dispatcher.coordinator")

#: A claim is asked for this often at most: cold zone, unknown trip, driver and key, and other
#: changes of the same trip to wait for. Waits double from 5 ms, so all of them last some 2 s.
_MAX_CLAIMS: Final = 16
_FIRST_WAIT_S: Final = 0.005
_MAX_WAIT_S: Final = 0.25
#: After so many, some 40 ms, Postgres is asked what became of the change that is waited for.
_CLAIMS_BEFORE_RELOAD: Final = 3
#: A settle is tried this often before the answer: a lost connection is found again at once.
_MAX_SETTLES: Final = 2
#: How often a change is planned anew because Postgres knew better than the live state.
_MAX_PLANS: Final = 3


class Coordinator:
    """Takes commands from claim to settle. The steps are the same for every kind of change."""

    def __init__(
        self,
        *,
        claims: ClaimScripts,
        commits: Commits,
        settler: Settler,
        rehydration: Rehydration,
        database: Database,
        limits: RateLimits,
        effects: SideEffects,
        node: str,
        lease_ms: int,
        key_ttl_s: int,
        halt_at: str = "",
    ) -> None:
        self._claims = claims
        self._commits = commits
        self._settler = settler
        self._rehydration = rehydration
        self._database = database
        self._limits = limits
        self._effects = effects
        self._node = node
        self._lease_ms = lease_ms
        self._key_ttl_ms = key_ttl_s * 1000
        self._halt_at = halt_at
        self._attempts = itertools.count(1)
        self._unsettled: set[asyncio.Task[None]] = set()

    async def execute(self, command: Command[ClaimedT]) -> Answer:
        """Claims, commits and settles one change; the answer leaves once it is durable.

        Raises StoreUnavailable where neither engine could decide, OutcomeUnknown where the commit's
        answer was lost and Postgres could not be asked.
        """
        keys = keys_of(command.zone.name)
        attempt = self._attempt(command)
        for _ in range(_MAX_PLANS):
            attempt, result = await self._claim(command, keys, attempt)
            if isinstance(result, Answer):
                return result
            await self._halt("after_claim")
            plan = command.plan(attempt, result)
            answer = self._keyed_answer(attempt, plan, result.now_ms)
            outcome = await self._commit(keys, attempt, plan.change, answer)
            if outcome.code is OutcomeCode.OK:
                await self._halt("after_commit")
                await self._settle(keys, attempt, plan, answer.stored if answer else None)
                command.committed(result, plan, self._effects)
                return Answer(plan.status, plan.body, result.limit)
            await self._release(keys, attempt)
            if outcome.code is OutcomeCode.REPLAY:
                return await self._replay(keys, attempt, outcome, result.limit)
            # Someone was faster in Postgres: the live state is stale. Look again, once it is not.
            log_refusal(
                "version_conflict", trip_id=attempt.trip_id, user=command.caller.actor.user_id,
                source="postgres",
            )  # fmt: skip
            await self._rehydration.reload(keys, attempt.trip_id, attempt.driver_id)
            attempt = _resolve(attempt, Resolved.LIMITS)
        return claim_refusal("trip_busy")

    def _attempt(self, command: Command[Any]) -> Attempt:
        caller = command.caller
        return Attempt(
            token=f"{self._node}.{next(self._attempts)}",
            trip_id=command.trip_id,
            driver_id=command.driver_id,
            lease_ms=self._lease_ms,
            key=caller.key,
            key_ttl_ms=self._key_ttl_ms,
            limits=self._limits.of(command.limit_class, caller.actor, caller.ip, command.zone),
        )

    async def _claim(
        self, command: Command[ClaimedT], keys: Keys, attempt: Attempt
    ) -> tuple[Attempt, ClaimedT | Answer]:
        """Asks for the claim until it is granted or answered, and provides what is missing."""
        wait_s = _FIRST_WAIT_S
        for asked in range(_MAX_CLAIMS):
            result: ClaimedT | NotClaimed = await command.claim(self._claims, keys, attempt)
            match result:
                case Refused():
                    return attempt, _refuse(command, attempt, result)
                case Replayed():
                    return attempt, replayed_answer(result)
                case Unresolved(code=ClaimCode.TRIP_BUSY):
                    if asked == _CLAIMS_BEFORE_RELOAD and attempt.trip_id:
                        # That change may have been committed, and its settle lost.
                        await self._rehydration.reload_trip(keys, attempt.trip_id)
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
                    wait_s = min(2 * wait_s, _MAX_WAIT_S)
                case Unresolved():
                    provided = await self._provide(keys, attempt, result)
                    if isinstance(provided, Answer):
                        return attempt, provided
                    attempt = provided
                case _:
                    return attempt, result
        return attempt, claim_refusal("trip_busy")

    async def _provide(self, keys: Keys, attempt: Attempt, missing: Unresolved) -> Attempt | Answer:
        """Brings to Redis what a claim misses; or the answer, where Postgres has one for the key."""
        match missing.code:
            case ClaimCode.COLD:
                await self._rehydration.warm(keys.zone)
            case ClaimCode.KEY_UNRESOLVED if attempt.key is not None:
                stored = await self._rehydration.reload_answer(
                    keys, attempt.key, trip_id=attempt.trip_id, driver_id=attempt.driver_id
                )
                if stored is not None:
                    return stored_answer(attempt.key, stored, missing.limit)
                return _resolve(attempt, Resolved.KEY)
            case ClaimCode.TRIP_UNKNOWN:
                if await self._rehydration.reload_trip(keys, attempt.trip_id) is None:
                    return _resolve(attempt, Resolved.TRIP)
            case ClaimCode.DRIVER_UNKNOWN:
                if not await self._rehydration.reload_driver(keys, attempt.driver_id):
                    return _resolve(attempt, Resolved.DRIVER)
            case ClaimCode.DRIVER_MOVED:
                return replace(attempt, trip_id=missing.trip_id)
        return attempt

    def _keyed_answer(self, attempt: Attempt, plan: Plan, now_ms: int) -> KeyedAnswer | None:
        if attempt.key is None:
            return None
        return KeyedAnswer(attempt.key, plan.status, plan.body.decode(), now_ms + self._key_ttl_ms)

    async def _commit(
        self, keys: Keys, attempt: Attempt, change: Change, answer: KeyedAnswer | None
    ) -> Outcome:
        try:
            return await self._commits.commit(change, answer)
        except OutcomeUnknown:
            if await was_committed(self._database, change, answer, attempt.token):
                return Outcome(OutcomeCode.OK)
            # It may still be under way: the claim is left to its lease, the sweeper will look.
            raise
        except Exception:
            await self._release(keys, attempt)
            raise

    async def _settle(
        self, keys: Keys, attempt: Attempt, plan: Plan, answer: StoredAnswer | None
    ) -> None:
        await self._tell(keys, attempt, plan.settlement, answer)
        if plan.other_settlement is not None:
            # Nothing was claimed in the other zone, and the key belongs to this one.
            visitor = replace(attempt, trip_id="", key=None)
            await self._tell(keys_of(plan.other_zone), visitor, plan.other_settlement, None)

    async def _tell(
        self, keys: Keys, attempt: Attempt, settlement: Settlement, answer: StoredAnswer | None
    ) -> None:
        """Settles. It is durable, so it is answered in any case: what fails twice is tried again in
        the background, and after the lease by the sweeper."""
        for _ in range(_MAX_SETTLES):
            try:
                await self._settler.settle(keys, attempt, settlement, answer)
            except StoreUnavailable as error:
                reason = str(error)
            else:
                return
        log.warning(
            "committed but not settled", zone=keys.zone, trip_id=attempt.trip_id,
            token=attempt.token, reason=reason,
        )  # fmt: skip
        task = asyncio.create_task(self._settle_later(keys, attempt, settlement, answer))
        self._unsettled.add(task)
        task.add_done_callback(self._unsettled.discard)

    async def _settle_later(
        self, keys: Keys, attempt: Attempt, settlement: Settlement, answer: StoredAnswer | None
    ) -> None:
        give_up, wait_s = time.monotonic() + self._lease_ms / 1000, _FIRST_WAIT_S
        while time.monotonic() < give_up:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)
            with contextlib.suppress(StoreUnavailable):
                await self._settler.settle(keys, attempt, settlement, answer)
                return

    async def close(self) -> None:
        """Leaves to other servers' sweepers what Redis could not be told."""
        for task in list(self._unsettled):
            task.cancel()
        await asyncio.gather(*self._unsettled, return_exceptions=True)

    async def _replay(self, keys: Keys, attempt: Attempt, outcome: Outcome, limit: Any) -> Answer:
        """The answer that the commit found stored; Redis keeps it from now on."""
        assert attempt.key is not None
        assert outcome.stored is not None
        await self._rehydration.reload_answer(
            keys, attempt.key, trip_id=attempt.trip_id, driver_id=attempt.driver_id
        )
        return stored_answer(attempt.key, outcome.stored, limit)

    async def _release(self, keys: Keys, attempt: Attempt) -> None:
        try:
            await self._claims.release_claim(keys, attempt)
        except StoreUnavailable:
            log.warning("claim left to its lease", trip_id=attempt.trip_id, token=attempt.token)

    async def _halt(self, point: str) -> None:
        if self._halt_at == point:
            log.warning("halted", point=point)
            await asyncio.Event().wait()


def _resolve(attempt: Attempt, what: Resolved) -> Attempt:
    return replace(attempt, resolved=attempt.resolved | {what})


def _refuse(command: Command[Any], attempt: Attempt, refused: Refused) -> Answer:
    actor = command.caller.actor
    match refused.code:
        case ClaimCode.RATE_LIMITED:
            assert refused.limit is not None
            log_limited(refused.limit, actor, command.caller.ip)
            return rate_limited_answer(refused.limit)
        case ClaimCode.KEY_REUSED:
            pass
        case _:
            log_refusal(
                refused.code, trip_id=attempt.trip_id, user=actor.user_id,
                version=str(refused.version if refused.version is not None else ""),
            )  # fmt: skip
    return refused_answer(refused)
