"""The coordinator with a span around each change, and around its claim, commit and settle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dispatcher.core.authority import Authority
from dispatcher.core.idempotency import KeyedAnswer
from dispatcher.ledger.changes import Change, Outcome
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys
from dispatcher.service.answers import Answer
from dispatcher.service.commands.command import ClaimedT, Command
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.deadlines import Deadline
from dispatcher.service.decider import Decider
from dispatcher.service.persistent_settles import Telling

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


class TracedCoordinator(Coordinator):
    """Does the same. It takes the place of the coordinator only where traces are asked for."""

    def __init__(self, tracer: Tracer, **parts: Any) -> None:
        super().__init__(**parts)
        self._tracer = tracer

    async def execute(self, command: Command[ClaimedT]) -> Answer:
        attributes = {
            "dispatcher.command": type(command).__name__,
            "dispatcher.zone": command.zone.name,
            "dispatcher.role": command.caller.actor.role.value,
        }
        if command.trip_id:
            attributes["dispatcher.trip_id"] = command.trip_id
        with self._tracer.start_as_current_span("change", attributes=attributes) as span:
            answer = await super().execute(command)
            span.set_attribute("dispatcher.code", answer.code)
            return answer

    async def _claim(
        self,
        decider: Decider,
        command: Command[ClaimedT],
        keys: Keys,
        attempt: Attempt,
        authority: Authority,
    ) -> tuple[Attempt, ClaimedT | Answer | None, float]:
        with self._span("claim", keys, attempt):
            return await super()._claim(decider, command, keys, attempt, authority)

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
        with self._span("commit", keys, attempt) as span:
            outcome = await super()._commit(decider, keys, attempt, change, answer, deadline, asked_s)
            span.set_attribute("dispatcher.outcome", outcome.code.value)
            return outcome

    async def _settle(self, decider: Decider, told: list[Telling], deadline: Deadline) -> None:
        keys, attempt, *_ = told[-1]  # the zone that has decided is the last
        with self._span("settle", keys, attempt):
            await super()._settle(decider, told, deadline)

    def _span(self, step: str, keys: Keys, attempt: Attempt) -> Any:
        attributes = {"dispatcher.zone": keys.zone, "dispatcher.trip_id": attempt.trip_id}
        return self._tracer.start_as_current_span(step, attributes=attributes)
