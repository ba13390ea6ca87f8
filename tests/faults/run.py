"""One round: apps at work, faults by seed, then quiet, and what the checker says of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import aiohttp

from tests.faults import kinds
from tests.faults.apps import Board, Driver, Rider, until
from tests.faults.client import Client
from tests.faults.evidence import Evidence, gather
from tests.faults.history import History
from tests.faults.impossible import Impossible
from tests.faults.judge import Judge
from tests.faults.kinds.fault import Fault
from tests.faults.kinds.servers import pause_server
from tests.faults.sizes import Size, Sizes
from tests.faults.stage import ZONES, Stage

_DRIVERS_EACH, _RIDERS = 5, 4
#: Repairs take a lease (1.5 s), a presence with its grace (4 s), the waves of a trip (3 s), and a slow machine's time.
_QUIET_S = 20.0
#: How long after a fault of Redis servers may still decide without it.
_RETURN_S = 2.5


@dataclass
class Outcome:
    """What a round came to. `breaches` is empty where every promise was kept."""

    seed: int
    faults: list[str] = field(default_factory=list)
    #: Faults that this machine cannot bring about, with the reason.
    skipped: list[str] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    attempts: int = 0
    successes: int = 0
    events: int = 0
    quiet_s: float = 0.0
    #: What the servers held, from time to time; the last one once all was quiet.
    sizes: list[Size] = field(default_factory=list)


#: Of even and odd seeds: a Redis that is slow is waited for, or Postgres decides without it.
_REDIS_TIMEOUTS_S = (10.0, 0.75)


@dataclass
class Crowd:
    """The apps of a round, with sockets that stay open when they do nothing more."""

    riders: list[Rider]
    drivers: list[Driver]
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


async def play(
    directory: Path,
    seed: int,
    fault_s: float,
    always: Sequence[Fault] = kinds.ALWAYS,
    others: Sequence[Fault] = kinds.ALL,
    *,
    small_disk: bool = False,
    cluster: Path | None = None,
    sized_every_s: float = 0.0,
) -> Outcome:
    """Plays a round in an empty directory: each fault of `always`, `others` until `fault_s` are over, then quiet."""
    random = Random(seed)
    history = History()
    outcome = Outcome(seed)
    async with (
        Judge() as judge,
        Stage(
            directory,
            history,
            small_disk=small_disk,
            cluster=cluster,
            redis_timeout_s=_REDIS_TIMEOUTS_S[seed % 2],
        ) as stage,
        _crowd(stage, seed) as crowd,
    ):
        work = [asyncio.create_task(app.run(crowd.stopped)) for app in (*crowd.riders, *crowd.drivers)]
        sizes = Sizes(stage, sized_every_s)
        looking = asyncio.create_task(sizes.run()) if sized_every_s else None
        try:
            await asyncio.sleep(0.7)
            await _bring_faults(stage, random, fault_s, (always, others), outcome)
        finally:
            if looking is not None:
                looking.cancel()
            crowd.stopped.set()
            await asyncio.gather(*work)
        started = time.monotonic()
        outcome.breaches = await _calm(stage, crowd, judge)
        outcome.quiet_s = time.monotonic() - started
        outcome.breaches += await _ask_again(stage, crowd)
        outcome.breaches += await _everybody_moves_on(crowd)
        final = await _wait_for_agreement(stage, judge)
        found = await judge.check(final)
        outcome.breaches = list(dict.fromkeys([*outcome.breaches, *found]))
        if sized_every_s:
            outcome.sizes = [*sizes.seen, await sizes.look()]
        if outcome.breaches:
            history.write(directory / "history.json")
        outcome.errors = stage.errors()
        outcome.attempts = len(history.attempts)
        outcome.successes = sum(attempt.is_success for attempt in history.attempts)
        outcome.events = sum(map(len, final.events.values()))
    return outcome


@asynccontextmanager
async def _crowd(stage: Stage, seed: int) -> AsyncIterator[Crowd]:
    board = Board()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:

        def client(name: str, role: str) -> Client:
            return Client(http, stage.urls, stage.history, name, role, seed)

        riders = [Rider(client(f"rider-{n}", "customer"), board) for n in range(_RIDERS)]
        drivers = [
            Driver(client(f"driver-{zone}-{n}", "driver"), board, zone)
            for zone in ZONES
            for n in range(_DRIVERS_EACH)
        ]
        sockets = [asyncio.create_task(app.client.stay_connected()) for app in (*riders, *drivers)]
        try:
            yield Crowd(riders, drivers)
        finally:
            for socket in sockets:
                socket.cancel()
            await asyncio.gather(*sockets, return_exceptions=True)


async def _bring_faults(
    stage: Stage,
    random: Random,
    fault_s: float,
    faults: tuple[Sequence[Fault], Sequence[Fault]],
    outcome: Outcome,
) -> None:
    """Each fault of the first, in an order of the seed, then any of the second, until the time is over."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + fault_s
    always, others = faults
    order = random.sample(always, len(always))
    while order or loop.time() < ends_at:
        fault = order.pop() if order else random.choice(others)
        # Beside some, a server stands still: it goes on with what it believed before.
        beside = [pause_server] if fault in kinds.WITH_A_PAUSE and random.random() < 0.4 else []
        name = "+".join(each.__name__ for each in (fault, *beside))
        began = time.time()
        try:
            await asyncio.gather(*(each(stage, random) for each in (fault, *beside)))
        except Impossible as reason:
            outcome.skipped.append(f"{name}: {reason}")
            continue
        outcome.faults.append(name)
        if fault in kinds.UNDECIDED:
            stage.history.undecided.append((began, time.time() + _RETURN_S))
        await asyncio.sleep(random.uniform(0.1, 0.8))


async def _calm(stage: Stage, crowd: Crowd, judge: Judge) -> list[str]:
    """Lets every driver end what they have, and waits until the trips that nobody took have expired."""

    async def end(driver: Driver) -> None:
        await driver.recover(crowd.stopped)

    await asyncio.gather(*(end(driver) for driver in crowd.drivers))
    return await judge.check(await _wait_for_agreement(stage, judge))


async def _wait_for_agreement(stage: Stage, judge: Judge) -> Evidence:
    """The evidence once nothing is amiss, or after the time within which all must be repaired."""
    evidence = Evidence(stage.history)

    async def agrees() -> bool:
        nonlocal evidence
        evidence = await gather(stage.history, stage.database_url, stage.primary.client, ZONES)
        return not await judge.check(evidence)

    await until(agrees, _QUIET_S)
    return evidence


async def _ask_again(stage: Stage, crowd: Crowd) -> list[str]:
    """Every success is asked for once more; the answers go into the history, for the checker."""
    clients = {app.client.user: app.client for app in (*crowd.riders, *crowd.drivers)}
    succeeded = [
        next(attempt for attempt in attempts if attempt.is_success)
        for attempts in stage.history.by_key().values()
        if any(attempt.is_success for attempt in attempts)
    ]
    unanswered = []
    for first in Random(len(succeeded)).sample(succeeded, min(100, len(succeeded))):
        again = await clients[first.user].intend(first.endpoint, first.body, key=first.key)
        if not again.is_success:
            unanswered.append(f"asked again: {first.key} is answered {again.status} {again.code}")
    return unanswered


async def _everybody_moves_on(crowd: Crowd) -> list[str]:
    """Each driver goes online, takes a fresh trip and completes it, without a single refusal."""
    refusals = []
    for place, driver in enumerate(crowd.drivers):
        rider = crowd.riders[place % len(crowd.riders)]
        answers = [await driver.go_online(), await rider.ask(driver.zone)]
        if answers[-1].is_success:
            trip = answers[-1].answer["trip"]["id"]
            answers += [
                await driver.act(step, trip) for step in ("accept", "arrive", "start", "complete")
            ]
        refusals += [
            f"stuck: {answer.user} {answer.body} is answered {answer.status} {answer.code if answer.raw else ''}"
            for answer in answers
            if not answer.is_success
        ]
    return refusals
