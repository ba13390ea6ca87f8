"""A short life of a zone that runs every script at least once."""

from __future__ import annotations

from dataclasses import replace

from dispatcher.core.actors import Actor, Role
from dispatcher.core.idempotency import StoredAnswer
from dispatcher.core.transitions import ACCEPT
from dispatcher.core.trips import Status, Trip
from dispatcher.live.catch_up_notes import CatchUpNotes, CaughtUp
from dispatcher.live.claim_results import (
    AcceptClaimed,
    AvailabilityClaimed,
    ClaimCode,
    CreationClaimed,
    DeclineClaimed,
    TransitionClaimed,
    Unresolved,
)
from dispatcher.live.claims import Attempt, ClaimScripts
from dispatcher.live.comparison import ComparisonScripts
from dispatcher.live.deliveries import DeliveryScripts, Rests
from dispatcher.live.keys import Keys
from dispatcher.live.limits import LimitScripts
from dispatcher.live.matching import MatchScripts
from dispatcher.live.offers import OfferScripts
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.positions import DriverFix, FixCode, FixResult, PositionScripts, QueueAt
from dispatcher.live.presence import PresenceScripts, Touch, TouchResult
from dispatcher.live.queues import PlaceInQueue, QueueScripts
from dispatcher.live.servers import ServerScripts
from dispatcher.live.settle import Settler
from dispatcher.live.settlement import Message, SettleEffect, Settlement
from dispatcher.live.state import Epoch, StateScripts
from dispatcher.live.zone_view import OpenWave, ZoneViewScripts
from tests.harness.lua_zone import FIX_AGE_MS, key, limit, make_driver, make_trip

_LIMITS = (limit(100), limit(100, name="ip", subject="10.0.0.1"))


class Walk:
    """One zone's walk: a trip is made, offered, declined, taken, and its driver goes offline."""

    def __init__(self, pipeline: Pipeline, keys: Keys) -> None:
        self.keys = keys
        self.trip_id = f"{keys.zone}_1"
        self.claims = ClaimScripts(pipeline)
        self.servers = ServerScripts(pipeline)
        self.settler = Settler(pipeline, fix_age_s=FIX_AGE_MS // 1000)
        self.state = StateScripts(pipeline)
        self.notes = CatchUpNotes(pipeline)
        self.offers = OfferScripts(pipeline)
        self.comparison = ComparisonScripts(pipeline)
        self.matching = MatchScripts(pipeline)
        self.positions = PositionScripts(pipeline)
        self.presence = PresenceScripts(pipeline)
        self.limits = LimitScripts(pipeline)
        self.deliveries = DeliveryScripts(pipeline)
        self.views = ZoneViewScripts(pipeline)
        self.queues = QueueScripts(pipeline)

    async def take(self) -> None:
        """Walks from the first trip to the last sweep."""
        trip, now_ms = await self._create()
        await self._offer(trip, now_ms)
        taken = await self._accept(trip, now_ms)
        await self._go_offline(taken)
        await self._end()

    def attempt(self, token: str) -> Attempt:
        return Attempt(token, self.trip_id, "d1", 10_000, key(token), 60_000, _LIMITS)

    async def settle(
        self, attempt: Attempt, settlement: Settlement, answer: StoredAnswer | None = None
    ) -> list[int | str]:
        return await self.settler.settle_changes(self.keys, [(attempt, settlement, answer)])

    async def _create(self) -> tuple[Trip, int]:
        keys, attempt = self.keys, self.attempt("t0")
        assert (await self.limits.check_limit(keys, _LIMITS)).is_cold
        assert await self.claims.claim_creation(keys, attempt) == Unresolved(ClaimCode.COLD, None)
        assert await self.state.mark_cold(keys, "run")
        told = CaughtUp(1, 2, 3)
        assert await self.notes.begin(keys, "a")
        assert not await self.notes.begin(keys, "b")
        assert not await self.notes.end_catching_up(keys, "b", fence=4, run_id="run", caught=told)
        assert await self.notes.read(keys, fence=4, run_id="run") is None
        assert await self.notes.end_catching_up(keys, "a", fence=4, run_id="run", caught=told)
        assert await self.notes.read(keys, fence=4, run_id="run") == told
        assert await self.notes.read(keys, fence=4, run_id="other") is None
        assert await self.state.begin_loading(keys, "a")
        assert not await self.state.end_loading(keys, "b", Epoch(1, 0, "run"))
        assert await self.state.drop_zone(keys) == {}
        assert await self.state.end_loading(keys, "a", Epoch(1, 0, "run"))
        assert await self.notes.read(keys, fence=4, run_id="run") is None
        assert (await self.limits.check_limit(keys, _LIMITS)).is_admitted
        created = await self.claims.claim_creation(keys, attempt)
        assert isinstance(created, CreationClaimed)
        trip = make_trip("1", id=self.trip_id, zone=keys.zone, pickup_lat=50.1, pickup_lng=8.6)
        settled = Settlement(trip=trip, event="{}", messages=[Message(["customer:c1"], "{}")])
        answer = StoredAnswer("f", 201, "{}", created.now_ms)
        assert await self.settle(attempt, settled, answer) == [1]
        return trip, created.now_ms

    async def _offer(self, trip: Trip, now_ms: int) -> None:
        keys = self.keys
        for name in ("d1", "d2"):
            await self.state.load_driver(keys, make_driver(name, zone=keys.zone))
        fixes = [DriverFix("d1", 50.1, 8.6, now_ms), DriverFix("d2", 50.1, 8.61, now_ms)]
        results = await self.positions.put_positions(
            keys, "car", fixes, fix_age_ms=FIX_AGE_MS, queues=[QueueAt("q", 60_000), None]
        )
        at_queue, elsewhere = results
        assert elsewhere == FixResult(FixCode.TAKEN, at_ms=now_ms)
        assert at_queue == elsewhere._replace(queue="q", queued_ms=at_queue.queued_ms)
        count = await self.queues.number_queue(keys, "q", "car", ["d1"], before=0)
        assert (count.standing, count.lost) == (1, [])
        assert await self.queues.place_of(keys, "d1") == PlaceInQueue("q", 1, at_queue.queued_ms)
        touches = [Touch(f"driver:{name}", "c1", "{}", 60_000, -1) for name in ("d1", "d2")]
        assert await self.presence.touch_presence(keys, touches) == [TouchResult.HERE] * 2
        assert await self.presence.expect_present(keys, ["driver:d1"], life_ms=60_000) == 0
        assert (await self.offers.claim_waves(keys)).trip_ids == [trip.id]
        assert (await self.matching.begin_round(keys, [trip.id], every_ms=3_000)).fence == 1
        (waiting,) = await self.matching.waiting(keys, [trip.id], max_wait_ms=60_000)
        assert (waiting.hash_["id"], waiting.open_offers) == (trip.id, 0)
        drivers = await self.matching.nearby(keys, ["d1", "d2"], max_wait_ms=60_000)
        assert [d.driver_id for d in drivers] == ["d1", "d2"]
        near = await self.offers.nearest(keys, trip, radius_m=5_000, max_drivers=10)
        assert [candidate.driver_id for candidate in near] == ["d1", "d2"]
        wave = await self.offers.offer_trip(
            keys, trip, "{}", near, round_number=0, size=5, answer_ms=15_000, again_ms=1_000,
            max_open_offers=3, fix_age_ms=FIX_AGE_MS, max_wait_ms=60_000, ask_again=False,
        )  # fmt: skip
        assert (wave.code, wave.offered) == ("offered", ["d1", "d2"])
        now_ms, epoch = await self.comparison.read_clock(keys)
        assert now_ms > 0
        assert epoch
        assert [page async for page in self.comparison.members(keys.seen)]
        offers = await self.offers.read_offers(keys, "d2")
        assert [offer.trip_id for offer in offers] == [trip.id]
        assert await self.views.read_waves(keys, [trip.id]) == {trip.id: OpenWave(0, 1, ["d1", "d2"])}
        nobody, seen = await self.views.read_drivers(keys, ["nobody", "d2"])
        assert (nobody.is_online, nobody.fix_ms, seen.is_online) == (False, 0, True)

        declined = Attempt("t1", trip.id, "d2", 10_000, None, 0, _LIMITS)
        claimed = await self.claims.claim_decline(keys, declined, version=0)
        assert isinstance(claimed, DeclineClaimed)
        decline = Settlement(barred_driver="d2", inboxes=["d2"])
        assert await self.settle(declined, decline) == [0]

    async def _accept(self, trip: Trip, now_ms: int) -> Trip:
        keys, attempt = self.keys, self.attempt("t2")
        claimed = await self.claims.claim_accept(keys, attempt, version=0, policy="offered")
        assert isinstance(claimed, AcceptClaimed)
        assert claimed.offered == ["d1"]
        taken = ACCEPT.apply(trip, now_ms, driver_id="d1", driver_vehicle_type="car")
        settlement = Settlement(
            trip=taken, driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.TAKE,
            inboxes=["d1"],
        )  # fmt: skip
        assert await self.settle(attempt, settlement) == [1]

        step = self.attempt("t3")
        moved = await self.claims.claim_transition(
            keys, step, version=1, actor=Actor("d1", Role.DRIVER), sources=(Status.ACCEPTED,)
        )
        assert isinstance(moved, TransitionClaimed)
        assert await self.claims.release_claim(keys, step) == 1
        return taken

    async def _go_offline(self, taken: Trip) -> None:
        keys, attempt = self.keys, self.attempt("t4")
        claimed = await self.claims.claim_availability(
            keys, attempt, goes_offline=True, changes_zone=False, vehicle_type=None, from_zone=keys.zone
        )
        assert isinstance(claimed, AvailabilityClaimed)
        assert claimed.released == taken
        driver = make_driver("d1", zone=keys.zone, version=1, is_online=False)
        settlement = Settlement(
            driver_id="d1", driver_vehicle_type="car", effect=SettleEffect.STATE, driver=driver
        )
        assert await self.settle(attempt, settlement) == [0]
        assert not await self.state.is_online(keys, "d1")
        assert await self.state.read_driver(keys, "d1") == replace(driver, trip_id=taken.id)

        newer = make_trip("1", id=self.trip_id, version=9)
        assert await self.state.load_trip(keys, newer, former_driver="d1")
        assert await self.state.read_driver(keys, "d1") == driver
        assert await self.state.customer_of(keys, self.trip_id) == "c1"
        assert await self.state.read_trip(keys, self.trip_id) == newer

    async def _end(self) -> None:
        keys = self.keys
        await self.settler.withdraw_offers(keys, "d1", [self.trip_id])
        assert await self.presence.drop_presence(keys, "driver:d1", "c1") == 0
        look = {"grace_ms": 0, "latest_ms": 2**53, "life_ms": 60_000}
        epoch = (await self.presence.sweep_absent(keys, epoch="", **look)).epoch
        swept = await self.presence.sweep_absent(keys, epoch=epoch, **look)
        assert swept.addresses == ["driver:d1"]
        assert await self.presence.forget_absent(keys, "driver:d2") is False
        assert await self.claims.sweep_claims(keys) == []
        await self._deliver()
        log = keys.limit("general", "c9")
        assert await self.limits.seed_limits([(log, 60, [1_000, 2_000])]) == 2
        assert await self.positions.sweep_fixes(keys, fix_age_ms=0) >= 0
        await self._hold()

    async def _hold(self) -> None:
        keys, node = self.keys, f"node-{self.keys.zone}"
        beat = await self.servers.beat_server(node, ["a"], "digest", life_ms=4_000, known_number=0)
        assert beat.serves is not None
        assert beat.serves[node] == "digest"
        assert await self.servers.zones_of("digest") == ["a"]
        assert await self.servers.take_zone(keys, node, beat.number) == beat.number
        survey = await self.servers.survey_zone(keys, str(beat.number))
        assert survey.is_held
        assert await self.servers.leave_servers(node)

    async def _deliver(self) -> None:
        keys, stream = self.keys, self.keys.unheard
        await self.deliveries.create_group(stream, "g", from_now_on=False)
        assert await self.deliveries.queue_offers(keys, [("driver:d9", "{}")], "http") == 1
        (entry,) = await self.deliveries.next_deliveries([stream], "g", 10)
        rests = Rests(attempt_ms=0, first_ms=0, longest_ms=1)
        pending, again = await self.deliveries.claim_deliveries(
            stream, "g", max_entries=10, rests=rests, max_pending=10
        )
        assert (pending, [each.entry for each in again]) == (1, [entry.entry])
        await self.deliveries.delivered(stream, "g", entry.entry)
