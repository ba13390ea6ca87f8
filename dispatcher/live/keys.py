"""Every Redis key, in one place. All keys of a zone share its hash tag, so they share a slot.

Ids are checked (core.model) before they get here: no key is built from unchecked text.
"""

from __future__ import annotations

from functools import lru_cache


class Keys:
    """The keys of one zone. The table of docs/keys.md is held against this class by a test."""

    def __init__(self, zone: str) -> None:
        self.zone = zone
        self._prefix = prefix = f"dsp:{{{zone}}}:"
        self.epoch = prefix + "epoch"
        self.loading = prefix + "loading"
        self.unheard_since = prefix + "unheard-since"
        self.catching_up = prefix + "catching-up"
        self.caught_up = prefix + "caught-up"
        self.filled = prefix + "filled"
        self.claims = prefix + "claims"
        self.seen = prefix + "seen"
        self.present = prefix + "present"
        self.presence_look = prefix + "presence-look"
        self.drift_look = prefix + "drift-look"
        self.queue_look = prefix + "queue-look"
        self.heat_look = prefix + "heat-look"
        self.vehicles = prefix + "vehicles"
        self.waves = prefix + "waves"
        self.matching = prefix + "matching"
        self.turned_down = prefix + "turned-down"
        self.events = prefix + "events"
        self.unheard = prefix + "unheard"
        self.dead_letters = prefix + "dead-letters"
        self.ready = prefix + "ready"
        self.holder = prefix + "holder"
        #: Channel: a wave of the zone has become due.
        self.wake = prefix + "wake"

    @property
    def prefix(self) -> str:
        """What every key of the zone begins with."""
        return self._prefix

    def heat(self, window: int) -> str:
        """String with PX, JSON: what drivers are shown of a window of time, by its number."""
        return f"{self._prefix}heat:{window}"

    def trip(self, trip_id: str) -> str:
        """Hash: the trip's columns."""
        return f"{self._prefix}trip:{trip_id}"

    def driver(self, driver_id: str) -> str:
        """Hash: the driver's availability, trip and last fix."""
        return f"{self._prefix}driver:{driver_id}"

    def trip_claim(self, trip_id: str) -> str:
        """String with PX: token of the attempt that changes the trip."""
        return f"{self._prefix}claim:trip:{trip_id}"

    def driver_claim(self, driver_id: str) -> str:
        """String with PX: token of the attempt that changes the driver."""
        return f"{self._prefix}claim:driver:{driver_id}"

    def geo(self, vehicle_type: str) -> str:
        """Geo set: drivers of this vehicle type who may be offered a trip now."""
        return f"{self._prefix}geo:{vehicle_type}"

    def offers(self, trip_id: str) -> str:
        """Sorted set: drivers with an open offer of the trip, by deadline (ms)."""
        return f"{self._prefix}offers:{trip_id}"

    def inbox(self, driver_id: str) -> str:
        """Sorted set: trips on offer to the driver, by deadline (ms)."""
        return f"{self._prefix}inbox:{driver_id}"

    def queue(self, queue: str, vehicle_type: str) -> str:
        """Sorted set: drivers of this vehicle type who wait in the queue, by their arrival (ms)."""
        return f"{self._prefix}queue:{queue}:{vehicle_type}"

    def barred(self, trip_id: str) -> str:
        """Set: drivers who declined the trip or gave it back."""
        return f"{self._prefix}barred:{trip_id}"

    def passed(self, trip_id: str) -> str:
        """Set: drivers who let an offer of the trip pass."""
        return f"{self._prefix}passed:{trip_id}"

    def limit(self, limit_class: str, subject: str) -> str:
        """List with EX: times (µs) of what was admitted."""
        return f"{self._prefix}limit:{limit_class}:{subject}"

    def idem(self, user_id: str, endpoint: str, key: str) -> str:
        """String with PX: what became of a request with this Idempotency-Key."""
        return f"{self._prefix}idem:{user_id}:{endpoint}:{key}"

    def presence(self, user_id: str, connection: str) -> str:
        """String with EX: a connection's metadata (JSON)."""
        return f"{self._prefix}presence:{user_id}:{connection}"

    def connections(self, user_id: str) -> str:
        """Sorted set: the user's connections by expiry (ms)."""
        return f"{self._prefix}connections:{user_id}"

    def channel(self, user_id: str) -> str:
        """Channel: what happens in this zone to a user, for the servers that have a socket of theirs.

        What those of all users begin with is that of the empty one.
        """
        return f"{self._prefix}push:{user_id}"


class ServerKeys:
    """The keys of the list of servers. No zone is named like their tag."""

    def __init__(self) -> None:
        prefix = "dsp:{@servers}:"
        self.alive = prefix + "alive"
        self.serves = prefix + "serves"
        self.list = prefix + "list"
        self.zones = prefix + "zones"
        #: Channel: the list has changed.
        self.changed = prefix + "changed"
        #: Channel: a zone is being loaded, whose Redis may have lost what servers have admitted.
        self.loads = prefix + "loads"


SERVER_KEYS = ServerKeys()


def home_channel(address: str) -> str:
    """Channel of a user (role:id), whatever the zone: in which one something is about to happen to them.

    It has a slot of its own: every server knows it without knowing a zone.
    """
    return f"dsp:{{{address}}}:push"


@lru_cache(maxsize=4096)
def keys_of(zone: str) -> Keys:
    """The keys of a zone; made once."""
    return Keys(zone)


def names_of_zone(keys: Keys) -> list[str]:
    """The keys that a zone has one of each; the push channel is none."""
    return [
        keys.epoch, keys.loading, keys.unheard_since, keys.catching_up, keys.caught_up, keys.filled,
        keys.claims, keys.seen, keys.present,
        keys.presence_look, keys.drift_look, keys.queue_look, keys.heat_look, keys.vehicles, keys.waves,
        keys.matching, keys.turned_down, keys.events, keys.ready,
    ]  # fmt: skip


def names_of_trip(keys: Keys, trip_id: str) -> list[str]:
    """The keys of one trip that decide on it."""
    kinds = (keys.trip, keys.trip_claim, keys.offers, keys.barred, keys.passed)
    return [name(trip_id) for name in kinds]


def names_of_driver(keys: Keys, driver_id: str) -> list[str]:
    """The keys of one driver that decide on them."""
    return [name(driver_id) for name in (keys.driver, keys.driver_claim, keys.inbox)]
