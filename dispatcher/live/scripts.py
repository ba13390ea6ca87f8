"""One typed method a Lua file, of the same name. Each builds keys and arguments, runs, decodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from dispatcher.core.drivers import AvailabilityStatus, Driver
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.limits import Limit, LimitState
from dispatcher.core.trips import ACTIVE, FINAL, Status, Trip
from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline

#: A finished trip stays in the live picture this long: late losers are still answered from there.
FINISHED_TTL_S: Final = 3_600
#: A sweeper that dies leaves its entries to another one after this long.
_SWEEP_AGAIN_MS: Final = 10_000
#: A server that dies while it runs a wave delays that wave by this much.
_WAVE_AGAIN_MS: Final = 2_000


@dataclass(slots=True)
class Attempt:
    """One try of one request to change something: what its claim needs and its settle lets go of.

    `resolved` holds a letter for each thing Postgres was asked already: k(ey), t(rip), d(river),
    and l where the limits have counted this request.
    """

    token: str
    trip_id: str
    driver_id: str
    lease_ms: int
    key: IdempotencyKey | None
    key_ttl_ms: int
    limits: Sequence[Limit]
    resolved: str = ""

    @property
    def entry(self) -> str:
        """The member of the zone's `claims`: enough for a sweeper to look at the right rows."""
        return f"{self.token} {self.trip_id or '-'} {self.driver_id or '-'}"

    def record(self, keys: Keys) -> str:
        """The key of the idempotency record; where none was sent, a key of the right slot."""
        if self.key is None:
            return keys.epoch
        return keys.idem(self.key.user_id, self.key.endpoint, self.key.key)


class Verdict(NamedTuple):
    """What a claim said: its code, Redis' time, the limit to report, and what the script adds."""

    code: str
    now_ms: int
    limit: LimitState | None
    detail: list[Any]


@dataclass(slots=True)
class Settlement:
    """What `settle_changes` writes for one change, all of it optional: for trip, driver or both."""

    answer: str = ""
    trip: Trip | None = None
    before: Trip | None = None  # the trip as it was claimed: only what differs is sent
    driver_id: str = ""
    driver_vehicle: str = ""
    effect: str = ""  # take, free, state
    driver_fields: list[str] = field(default_factory=list)
    bars: str = ""
    inboxes: Sequence[str] = ()
    event: str = ""
    message: str = ""


class Placed(NamedTuple):
    """What became of a fix: the script's word, what it adds, and the limit to report."""

    word: str
    detail: str = ""
    limit: LimitState | None = None


@dataclass(frozen=True, slots=True)
class WaveResult:
    """What a wave came to; times in ms. `expired` are drivers who let their offer pass."""

    code: str
    now_ms: int
    wave: int
    deadline_ms: int
    offered: list[str]
    expired: list[str]


def flat_to_dict(flat: Sequence[str]) -> dict[str, str]:
    """A flat reply of HGETALL as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def driver_fields(driver: Driver) -> list[str]:
    """A driver's availability as the pairs of the Redis hash; the trip is bound by trips alone."""
    return [
        "zone", driver.zone,
        "availability_status", driver.availability_status,
        "is_online", "1" if driver.is_online else "0",
        "vehicle_type", driver.vehicle_type,
        "version", str(driver.version),
        "updated_at", str(driver.updated_at),
    ]  # fmt: skip


def driver_from_hash(user_id: str, zone: str, hash_: dict[str, str]) -> Driver:
    """A driver from the Redis hash."""
    return Driver(
        user_id=user_id,
        zone=zone,
        availability_status=AvailabilityStatus(hash_.get("availability_status", "unavailable")),
        is_online=hash_.get("is_online") == "1",
        vehicle_type=hash_.get("vehicle_type", ""),
        version=int(hash_.get("version", "-1")),
        updated_at=int(hash_.get("updated_at", "0")),
        trip_id=hash_.get("trip_id") or None,
    )


def _tail(keys: Keys, limits: Iterable[Limit]) -> tuple[list[str], list[int]]:
    names: list[str] = []
    pairs: list[int] = []
    for limit in limits:
        names.append(keys.limit(limit.name, limit.subject))
        pairs += limit.rate
    return names, pairs


def _verdict(reply: list[Any], limits: Sequence[Limit]) -> Verdict:
    code, now_ms, place, remaining, reset_ms, *detail = reply
    state = None
    if place:
        limit = limits[place - 1]
        state = LimitState(limit.name, limit.rate, remaining, reset_ms, now_ms)
    return Verdict(code, now_ms, state, detail)


class Scripts:
    """The Lua files as methods. All raise StoreUnavailable where Redis does not answer."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def _common(self, attempt: Attempt) -> list[Any]:
        return [
            attempt.token,
            attempt.lease_ms,
            attempt.key.fingerprint if attempt.key else "",
            attempt.key_ttl_ms,
            attempt.resolved,
            attempt.entry,
        ]

    async def claim_accept(
        self, keys: Keys, attempt: Attempt, *, version: int | None, policy: str
    ) -> Verdict:
        """Claims trip and driver for an accept. `claimed`: [trip hash, vehicle type, offered]."""
        names, pairs = _tail(keys, attempt.limits)
        trip_id, driver_id = attempt.trip_id, attempt.driver_id
        reply = await self._pipeline.run(
            "claim_accept",
            (
                keys.epoch, attempt.record(keys), keys.trip(trip_id), keys.driver(driver_id),
                keys.trip_claim(trip_id), keys.driver_claim(driver_id), keys.claims,
                keys.offers(trip_id), *names,
            ),
            (
                *self._common(attempt), "" if version is None else version, driver_id, policy,
                *pairs,
            ),
        )  # fmt: skip
        return _verdict(reply, attempt.limits)

    async def claim_transition(
        self,
        keys: Keys,
        attempt: Attempt,
        *,
        version: int | None,
        role: str,
        actor: str,
        sources: Iterable[Status],
    ) -> Verdict:
        """Claims a trip that exists. `claimed`: [trip hash, drivers with an offer]."""
        names, pairs = _tail(keys, attempt.limits)
        trip_id = attempt.trip_id
        reply = await self._pipeline.run(
            "claim_transition",
            (
                keys.epoch, attempt.record(keys), keys.trip(trip_id), keys.trip_claim(trip_id),
                keys.claims, keys.offers(trip_id), *names,
            ),
            (
                *self._common(attempt), "" if version is None else version, role, actor,
                f",{','.join(sources)},", *pairs,
            ),
        )  # fmt: skip
        return _verdict(reply, attempt.limits)

    async def claim_creation(self, keys: Keys, attempt: Attempt) -> Verdict:
        """Claims a trip's id. `claimed`: []."""
        names, pairs = _tail(keys, attempt.limits)
        trip_id = attempt.trip_id
        reply = await self._pipeline.run(
            "claim_creation",
            (
                keys.epoch, attempt.record(keys), keys.trip(trip_id), keys.trip_claim(trip_id),
                keys.claims, *names,
            ),
            (*self._common(attempt), *pairs),
        )  # fmt: skip
        return _verdict(reply, attempt.limits)

    async def claim_availability(
        self,
        keys: Keys,
        attempt: Attempt,
        *,
        goes_offline: bool,
        changes_zone: bool,
        vehicle_type: str,
    ) -> Verdict:
        """Claims a driver, and the trip to release. `claimed`: [driver hash, trip hash or []]."""
        names, pairs = _tail(keys, attempt.limits)
        trip_id, driver_id = attempt.trip_id, attempt.driver_id
        driver, claim = keys.driver(driver_id), keys.driver_claim(driver_id)
        reply = await self._pipeline.run(
            "claim_availability",
            (
                keys.epoch, attempt.record(keys), driver, claim, keys.claims,
                keys.trip(trip_id) if trip_id else driver,
                keys.trip_claim(trip_id) if trip_id else claim, *names,
            ),
            (
                *self._common(attempt), trip_id, int(goes_offline), int(changes_zone),
                vehicle_type, *pairs,
            ),
        )  # fmt: skip
        return _verdict(reply, attempt.limits)

    async def claim_decline(self, keys: Keys, attempt: Attempt, *, version: int | None) -> Verdict:
        """Lets a driver decline a pending trip. `claimed`: [trip hash]."""
        names, pairs = _tail(keys, attempt.limits)
        reply = await self._pipeline.run(
            "claim_decline",
            (
                keys.epoch, attempt.record(keys), keys.trip(attempt.trip_id), keys.claims, *names,
            ),
            (*self._common(attempt), "" if version is None else version, *pairs),
        )  # fmt: skip
        return _verdict(reply, attempt.limits)

    def settle_changes(
        self, keys: Keys, changes: Sequence[tuple[Attempt, Settlement]], *, fix_age_ms: int
    ) -> asyncio.Future[list[int | str]]:
        """Writes what was committed and drops the claims; no two changes share a trip or a driver.

        Says of each whether its trip was written (1 or 0), -1 where the hash is not of the version
        before (nothing was done), or the text of an error.
        """
        names: list[str] = [keys.claims, keys.seen, keys.events, keys.push, keys.waves]
        args: list[Any] = [fix_age_ms]
        for attempt, settlement in changes:
            trip, before = settlement.trip, settlement.before
            trip_id, driver_id = attempt.trip_id, settlement.driver_id
            wave, ttl, version, base = "", "", "", ""
            pairs: Sequence[Any] = ()
            if trip is not None:
                wave = "start" if trip.current_status is Status.PENDING else "stop"
                ttl = str(FINISHED_TTL_S) if trip.current_status in FINAL else ""
                version = str(trip.version)
                base = "" if before is None else str(before.version)
                pairs = trip.to_hash(before)
            names += (
                keys.trip(trip_id) if trip_id else keys.epoch,
                keys.driver(driver_id) if driver_id else keys.epoch,
                keys.trip_claim(trip_id or "-"), keys.driver_claim(attempt.driver_id or "-"),
                attempt.record(keys), keys.geo(settlement.driver_vehicle or "-"),
                keys.offers(trip_id or "-"), keys.barred(trip_id or "-"),
            )  # fmt: skip
            names += [keys.inbox(d) for d in settlement.inboxes]
            fields = settlement.driver_fields
            args += (
                len(settlement.inboxes), len(fields) // 2, len(pairs) // 2,
                attempt.token, attempt.entry, settlement.answer, attempt.key_ttl_ms,
                version, base, ttl, trip_id, wave, driver_id, settlement.effect,
                settlement.bars, settlement.event, settlement.message,
            )  # fmt: skip
            args += fields
            args += pairs
        return self._pipeline.run("settle_changes", names, args)

    async def release_claim(self, keys: Keys, attempt: Attempt) -> int:
        """Drops the attempt's claims and its idempotency lease. Returns how many claims."""
        dropped: int = await self._pipeline.run(
            "release_claim",
            (
                keys.trip_claim(attempt.trip_id or "-"), keys.driver_claim(attempt.driver_id or "-"),
                keys.claims, attempt.record(keys),
            ),
            (attempt.token, attempt.entry, int(attempt.key is not None)),
        )  # fmt: skip
        return dropped

    async def load_trip(self, keys: Keys, trip: Trip, *, former_driver: str | None = None) -> bool:
        """Puts a trip from Postgres into the live picture. Says whether it was newer."""
        own = keys.trip(trip.id)
        bound = trip.driver_id is not None and trip.current_status in ACTIVE
        reply: int = await self._pipeline.run(
            "load_trip",
            (
                own,
                keys.driver(trip.driver_id) if bound and trip.driver_id else own,
                keys.driver(former_driver) if former_driver else own,
                keys.waves,
            ),
            (
                trip.version, trip.id, FINISHED_TTL_S if trip.current_status in FINAL else "",
                int(bound), int(trip.current_status is Status.PENDING), *trip.to_hash(),
            ),
        )  # fmt: skip
        return reply == 1

    async def load_driver(
        self, keys: Keys, driver: Driver, *, fix: tuple[float, float, int] | None = None
    ) -> bool:
        """Puts a driver from Postgres into the live picture, with their last fix (lat, lng, ms).

        Says whether it was newer. A driver who works in another zone is offline in this one.
        """
        if driver.zone != keys.zone:
            driver = replace(driver, is_online=False)
        reply: int = await self._pipeline.run(
            "load_driver",
            (keys.driver(driver.user_id), keys.geo(driver.vehicle_type), keys.seen),
            (driver.version, driver.user_id, *(fix or ("", "", "")), *driver_fields(driver)),
        )
        return reply == 1

    async def check_limit(self, keys: Keys, limits: Sequence[Limit]) -> Verdict:
        """Counts one call: `admitted` or `rate_limited`."""
        names, pairs = _tail(keys, limits)
        return _verdict(await self._pipeline.run("check_limit", names, pairs), limits)

    async def put_positions(
        self,
        keys: Keys,
        vehicle_type: str,
        fixes: Sequence[tuple[str, float, float, int]],
        *,
        fix_age_ms: int,
        limits: Sequence[Sequence[Limit]] = (),
    ) -> tuple[str, int, list[Placed]]:
        """Takes fixes (driver, lat, lng, ms) of one vehicle type: (code, now ms, result each).

        `limits` are those of each fix: as many for each, and of the same rates.
        """
        names = [keys.epoch, keys.geo(vehicle_type), keys.seen, keys.vehicles]
        shared = limits[0] if limits else ()
        args: list[Any] = [fix_age_ms, vehicle_type, len(shared)]
        for limit in shared:
            args += limit.rate
        for i, fix in enumerate(fixes):
            names.append(keys.driver(fix[0]))
            args += fix
            if shared:
                names += [keys.limit(limit.name, limit.subject) for limit in limits[i]]
        code, now_ms, results = await self._pipeline.run("put_positions", names, args)
        placed = []
        for i, (word, detail, place, remaining, reset_ms) in enumerate(results):
            state = None
            if place:
                limit = limits[i][place - 1]
                state = LimitState(limit.name, limit.rate, remaining, reset_ms, now_ms)
            placed.append(Placed(word, detail, state))
        return code, now_ms, placed

    async def sweep_claims(self, keys: Keys, *, most: int = 100) -> list[str]:
        """Entries of attempts whose lease is over: `token trip driver`, with - for none."""
        reply: list[str] = await self._pipeline.run(
            "sweep_claims", (keys.claims,), (most, _SWEEP_AGAIN_MS)
        )
        return reply

    async def drop_claim(self, keys: Keys, entry: str) -> None:
        """Forgets an overdue attempt: what became of it is known."""
        await self._pipeline.command("ZREM", keys.claims, entry)

    async def sweep_fixes(self, keys: Keys, *, fix_age_ms: int, most: int = 1_000) -> int:
        """Takes drivers with a stale fix out of the geo sets; returns how many."""
        vehicle_types: list[str] = await self._pipeline.command("SMEMBERS", keys.vehicles)
        swept: int = await self._pipeline.run(
            "sweep_fixes", (keys.seen, *(keys.geo(v) for v in vehicle_types)), (fix_age_ms, most)
        )
        return swept

    async def touch_presence(
        self, keys: Keys, touches: Sequence[tuple[str, str, str, str, int]]
    ) -> None:
        """Registers or prolongs connections: (role, user, connection, JSON about it, life in ms)."""
        names: list[str] = [keys.present]
        args: list[Any] = []
        for role, user_id, connection, about, life_ms in touches:
            own = f"{role}:{user_id}"
            names += (keys.presence(own, connection), keys.connections(own))
            args += (own, connection, about, life_ms)
        await self._pipeline.run("touch_presence", names, args)

    async def drop_presence(self, keys: Keys, address: str, connection: str) -> int:
        """Removes one connection; returns how many its user has left."""
        left: int = await self._pipeline.run(
            "drop_presence",
            (keys.presence(address, connection), keys.connections(address), keys.present),
            (connection, address),
        )
        return left

    async def sweep_absent(self, keys: Keys, *, grace_ms: int, most: int = 200) -> list[str]:
        """Addresses of users who have been gone for longer than the grace period."""
        reply: list[str] = await self._pipeline.run(
            "sweep_absent", (keys.present,), (grace_ms, _SWEEP_AGAIN_MS, most)
        )
        return reply

    async def forget_absent(self, keys: Keys, address: str) -> bool:
        """Forgets a user who is gone; False where they came back."""
        return bool(await self._pipeline.run("forget_absent", (keys.present,), (address,)))

    async def claim_waves(self, keys: Keys, *, most: int = 100) -> tuple[int, int, list[str]]:
        """Trips whose wave is due: (now ms, when the next is due in ms or 0, trip ids)."""
        now_ms, next_ms, due = await self._pipeline.run(
            "claim_waves", (keys.waves,), (most, _WAVE_AGAIN_MS)
        )
        return now_ms, next_ms, due

    async def offer_trip(
        self,
        keys: Keys,
        trip: Trip,
        trip_json: str,
        candidates: Sequence[tuple[str, float]],
        *,
        reach: int,
        size: int,
        answer_ms: int,
        again_ms: int,
        share: int,
        fix_age_ms: int,
        patience_ms: int,
        ask_again: bool,
    ) -> WaveResult:
        """Runs one wave over the candidates (driver, metres), nearest first."""
        names = [
            keys.trip(trip.id), keys.trip_claim(trip.id), keys.offers(trip.id),
            keys.barred(trip.id), keys.passed(trip.id), keys.waves, keys.present, keys.push,
        ]  # fmt: skip
        args: list[Any] = [
            trip.id, reach, size, answer_ms, again_ms, share, fix_age_ms, patience_ms,
            int(ask_again), trip_json,
        ]  # fmt: skip
        for driver_id, distance_m in candidates:
            names += (keys.driver(driver_id), keys.inbox(driver_id))
            args += (driver_id, f"{distance_m:.1f}")
        return WaveResult(*await self._pipeline.run("offer_trip", names, args))

    async def read_trip(self, keys: Keys, trip_id: str) -> list[str]:
        """The trip's hash, flat; empty where there is none."""
        hash_ = await self._pipeline.command("HGETALL", keys.trip(trip_id))
        return hash_ if isinstance(hash_, list) else [t for pair in hash_.items() for t in pair]

    async def forget_wave(self, keys: Keys, trip_id: str) -> None:
        """There is no such trip: no wave is due."""
        await self._pipeline.command("ZREM", keys.waves, trip_id)

    async def nearest(
        self, keys: Keys, trip: Trip, *, radius_m: float, most: int
    ) -> list[tuple[str, float]]:
        """Drivers around a trip's pickup, nearest first, with their distance in m."""
        found = await self._pipeline.command(
            "GEOSEARCH", keys.geo(trip.vehicle_type),
            "FROMLONLAT", trip.pickup_lng, trip.pickup_lat, "BYRADIUS", radius_m, "m",
            "ASC", "COUNT", most, "WITHDIST",
        )  # fmt: skip
        return [(driver, float(distance)) for driver, distance in found]

    async def read_driver(self, keys: Keys, driver_id: str) -> dict[str, str]:
        """The driver's hash; empty where there is none."""
        hash_ = await self._pipeline.command("HGETALL", keys.driver(driver_id))
        return hash_ if isinstance(hash_, dict) else flat_to_dict(hash_)

    async def read_offers(self, keys: Keys, driver_id: str) -> list[tuple[str, int, int]]:
        """Open offers of a driver: (trip, deadline in ms, ms left)."""
        reply = await self._pipeline.run("read_offers", (keys.inbox(driver_id),), ())
        return [(trip_id, deadline_ms, left_ms) for trip_id, deadline_ms, left_ms in reply]

    async def customer_of(self, keys: Keys, trip_id: str) -> str | None:
        """The customer of a trip."""
        customer: str | None = await self._pipeline.command("HGET", keys.trip(trip_id), "customer_id")
        return customer

    async def is_online(self, keys: Keys, driver_id: str) -> bool:
        """Whether the driver is online in this zone."""
        online: str | None = await self._pipeline.command("HGET", keys.driver(driver_id), "is_online")
        return online == "1"
