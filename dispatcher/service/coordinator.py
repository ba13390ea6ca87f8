"""The one way of every change of state: claim, commit, settle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from typing import Any, Final

import structlog

from dispatcher.core.authority import Authority
from dispatcher.core.errors import OutcomeUnknown, ReplyLost, StoreUnavailable
from dispatcher.core.idempotency import KeyedAnswer
from dispatcher.core.limits import LimitState
from dispatcher.ledger.changes import Change, Outcome, OutcomeCode
from dispatcher.ledger.commits import Commits
from dispatcher.ledger.database import Database
from dispatcher.ledger.lost_answers import was_committed
from dispatcher.live.claim_results import (
    BY_THE_TRIP_OR_DRIVER,
    PROBLEM_CODES,
    ClaimCode,
    NotClaimed,
    Refused,
    Replayed,
    Unresolved,
)
from dispatcher.live.claims import WAITED_FOR, Attempt, Resolved
from dispatcher.live.keys import Keys, keys_of
from dispatcher.observe.call_ids import TRIP_ID
from dispatcher.observe.refusal_log import log_refusal
from dispatcher.observe.series import CLAIM_SECONDS, CLAIMS_UNRESOLVED, COMMIT_SECONDS, TRIP_EVENTS
from dispatcher.service.answers import Answer, claim_refusal, replayed_answer, stored_answer
from dispatcher.service.authorities import Authorities
from dispatcher.service.claim_refusals import answer_refused, may_have_changed
from dispatcher.service.commands.command import ClaimedT, Command, Plan, SideEffects
from dispatcher.service.deadlines import Deadline, Deadlines
from dispatcher.service.decider import Decider
from dispatcher.service.persistent_settles import Telling, tellings_of
from dispatcher.service.rate_limits import RateLimits

log = structlog.get_logger("dispatcher.coordinator")

#: A claim is asked for this often at most: cold zone, unknown trip, driver and key, and other
#: changes of the same trip to wait for. Waits double from 5 ms, so all of them last some 2 s.
_MAX_CLAIMS: Final = 16
_FIRST_WAIT_S: Final = 0.005
_MAX_WAIT_S: Final = 0.25
#: After so many, some 40 ms, Postgres is asked what became of the change that is waited for.
_CLAIMS_BEFORE_RELOAD: Final = 3
#: How often a change is planned anew because Postgres knew better than the live state.
_MAX_PLANS: Final = 3


class Coordinator:
    """Takes commands from claim to settle. The steps are the same for every kind of change."""

    def __init__(
        self,
        *,
        by_redis: Decider,
        by_ledger: Decider,
        authorities: Authorities,
        commits: Commits,
        database: Database,
        limits: RateLimits,
        effects: SideEffects,
        node: str,
        lease_ms: int,
        commit_timeout_s: float,
        key_ttl_s: int,
        deadline_s: float,
        halt_at: str = "",
    ) -> None:
        self._by_redis = by_redis
        self._by_ledger = by_ledger
        self._authorities = authorities
        self._commits = commits
        self._database = database
        self._limits = limits
        self._effects = effects
        self._node = node
        self._lease_ms = lease_ms
        #: A commit that is sent so long after its claim was asked for, has ended before the lease has.
        self._send_within_s = lease_ms / 1000 - commit_timeout_s
        self._key_ttl_ms = key_ttl_s * 1000
        self._deadlines = Deadlines(deadline_s)
        self._halt_at = halt_at
        self._attempts = itertools.count(1)

    async def execute(self, command: Command[ClaimedT]) -> Answer:
        """Claims, commits and settles one change; the answer leaves once it is durable.

        Raises StoreUnavailable where neither engine could decide, OutcomeUnknown where the commit's
        answer was lost and Postgres could not be asked; either after the request's deadline at most.
        """
        zone = command.zone.name
        keys, attempt = keys_of(zone), self._attempt(command)
        TRIP_ID.set(attempt.trip_id)
        with self._deadlines.begin() as deadline:
            for _ in range(_MAX_PLANS):
                # Before the claim: what was claimed under an older fence is not committed.
                authority = self._authorities.of(zone)
                is_degraded = authority.is_degraded
                decider = self._by_ledger if is_degraded else self._by_redis
                try:
                    attempt, result, asked_s = await self._claim(
                        decider, command, keys, attempt, authority
                    )
                except StoreUnavailable:
                    if is_degraded or not await self._authorities.has_left_redis(zone):
                        raise
                    attempt = attempt._replace(resolved=frozenset())
                    continue
                if result is None:
                    continue  # who decides has changed since it was refused
                if isinstance(result, Answer):
                    return result
                if self._halt_at:
                    await self._halt("after_claim")
                plan = command.plan(attempt, result)
                TRIP_ID.set(plan.change.trip_id or "")  # only the claim tells which trip is released
                answer = self._keyed_answer(attempt, plan, result.now_ms)
                if self._halt_at:
                    await self._halt("before_commit")
                change = plan.change.decided_under(authority.fence, is_fallback=is_degraded)
                outcome = await self._commit(decider, keys, attempt, change, answer, deadline, asked_s)
                if outcome.code is OutcomeCode.OK:
                    if self._halt_at:
                        await self._halt("after_commit")
                    told = tellings_of(keys, attempt, plan, answer.stored if answer else None)
                    await self._settle(decider, told, deadline)
                    if self._halt_at:
                        await self._halt("after_settle")
                    command.committed(result, plan, self._effects)
                    return Answer(plan.status, plan.body, result.limit)
                await decider.release(keys, attempt)
                if outcome.code is OutcomeCode.REPLAY:
                    return await self._replay(decider, keys, attempt, outcome, result.limit)
                await self._catch_up(decider, command, keys, attempt, outcome.code)
                attempt = attempt.resolve(Resolved.LIMITS)
            return claim_refusal(PROBLEM_CODES[ClaimCode.TRIP_BUSY])

    def waiting(self) -> dict[str, int]:
        """What goes on in the background: changes to be settled, and claims to be let go of."""
        return self._by_redis.waiting()

    async def close(self) -> None:
        """Leaves to their lease what Redis could not be told yet."""
        await self._by_redis.close()
        await self._by_ledger.close()

    def _attempt(self, command: Command[Any]) -> Attempt:
        caller = command.caller
        return Attempt(
            f"{self._node}.{next(self._attempts)}{'' if command.is_race else WAITED_FOR}",
            *(command.trip_id, command.driver_id, self._lease_ms, caller.key, self._key_ttl_ms),
            self._limits.of(command.limit_class, caller.actor, caller.ip, command.zone),
        )

    async def _claim(
        self,
        decider: Decider,
        command: Command[ClaimedT],
        keys: Keys,
        attempt: Attempt,
        authority: Authority,
    ) -> tuple[Attempt, ClaimedT | Answer | None, float]:
        """Asks for the claim until it is granted or answered, and provides what is missing; None where
        the authority under which it was refused has ended. Says when it was asked for the last time, by
        the monotonic clock."""
        wait_s = _FIRST_WAIT_S
        for asked in range(_MAX_CLAIMS):
            result: ClaimedT | NotClaimed
            asked_s = time.monotonic()
            try:
                result = await command.claim(decider.claims, keys, attempt)
            except (ReplyLost, asyncio.CancelledError):
                decider.let_go(keys, attempt)  # it may have been granted
                raise
            CLAIM_SECONDS.observe(time.monotonic() - asked_s)
            match result:
                case Refused() | Replayed():
                    if may_have_changed(result) and not await decider.stands(keys, attempt, authority):
                        return attempt.resolve(Resolved.LIMITS), None, asked_s
                    if isinstance(result, Replayed):
                        return attempt, replayed_answer(result), asked_s
                    if result.code in BY_THE_TRIP_OR_DRIVER:
                        decider.admitted(attempt, result.limit)
                    told = answer_refused(command, attempt.trip_id, result, self._effects.race_log)
                    return attempt, told, asked_s
                case Unresolved(code=ClaimCode.TRIP_BUSY):
                    CLAIMS_UNRESOLVED.add(result.code)
                    if asked == _CLAIMS_BEFORE_RELOAD and attempt.trip_id:
                        # That change may have been committed, and its settle lost.
                        await decider.reload_trip(keys, attempt.trip_id)
                        attempt = attempt.resolve(Resolved.CHANGE)
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
                    wait_s = min(2 * wait_s, _MAX_WAIT_S)
                case Unresolved():
                    CLAIMS_UNRESOLVED.add(result.code)
                    provided = await decider.provide(keys, attempt, result)
                    if isinstance(provided, Answer):
                        return attempt, provided, asked_s
                    attempt = provided
                case _:
                    decider.admitted(attempt, result.limit)
                    return attempt, result, asked_s
        return attempt, claim_refusal(PROBLEM_CODES[ClaimCode.TRIP_BUSY]), asked_s

    def _keyed_answer(self, attempt: Attempt, plan: Plan, now_ms: int) -> KeyedAnswer | None:
        if attempt.key is None:
            return None
        return KeyedAnswer(attempt.key, plan.status, plan.body.decode(), now_ms + self._key_ttl_ms)

    async def _commit(
        self,
        decider: Decider,
        keys: Keys,
        attempt: Attempt,
        change: Change,
        answer: KeyedAnswer | None,
        deadline: Deadline,
        asked_s: float,
    ) -> Outcome:
        began_s = time.monotonic()
        try:
            outcome = await self._commits.commit(change, answer, send_by=asked_s + self._send_within_s)
        except OutcomeUnknown as unknown:
            try:
                if not deadline.expired() and await was_committed(
                    self._database, change, answer, attempt.token
                ):
                    return Outcome(OutcomeCode.OK)
            except asyncio.CancelledError:
                raise unknown from None
            # It may still be under way: the claim is left to its lease, the reconcile job will look.
            raise
        except asyncio.CancelledError:
            decider.let_go(keys, attempt)  # the change was not sent
            raise
        except Exception:
            await decider.release(keys, attempt, gives_back=True)
            raise
        if outcome.code is OutcomeCode.OK:
            COMMIT_SECONDS.observe(time.monotonic() - began_s)
            if change.event is not None:
                TRIP_EVENTS.numbers[keys.zone, change.event] += 1
        return outcome

    async def _catch_up(
        self, decider: Decider, command: Command[Any], keys: Keys, attempt: Attempt, code: OutcomeCode
    ) -> None:
        if code is OutcomeCode.FENCED:
            await self._authorities.read(keys.zone)
            return
        # Someone was faster in Postgres: the live state is stale, and looked at anew.
        user = command.caller.actor.user_id
        log_refusal("version_conflict", trip_id=attempt.trip_id, user=user, source="postgres")
        # Where Redis is away, the next claim finds out who decides.
        with contextlib.suppress(StoreUnavailable):
            await decider.catch_up(keys, attempt)

    async def _settle(self, decider: Decider, told: list[Telling], deadline: Deadline) -> None:
        keys, attempt, *_ = told[0]
        try:
            if self._halt_at:
                await self._halt("before_settle")
            await decider.tell(told)
        except asyncio.CancelledError:
            if not deadline.expired():
                raise
            # It is durable, so it is answered; the settle itself goes on.
            log.warning("settle takes too long", zone=keys.zone, trip_id=attempt.trip_id)

    async def _replay(
        self,
        decider: Decider,
        keys: Keys,
        attempt: Attempt,
        outcome: Outcome,
        limit: LimitState | None,
    ) -> Answer:
        """The answer that the commit found stored; Redis, where it is there, keeps it from now on."""
        assert attempt.key is not None
        assert outcome.stored is not None
        with contextlib.suppress(StoreUnavailable):
            await decider.keep_answer(keys, attempt)
        return stored_answer(attempt.key, outcome.stored, limit)

    async def _halt(self, point: str) -> None:
        if self._halt_at == point:
            log.warning("halted", point=point)
            await asyncio.Event().wait()
