"""When absence can be judged, on a clock that is set by hand."""

from __future__ import annotations

from dispatcher.service.presence_outages import PresenceOutages


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def steady(clock: Clock) -> PresenceOutages:
    outages = PresenceOutages(["a", "b"], ttl_s=120, grace_s=30, clock=clock)
    outages.flushed(clock.now, ["a", "b"])
    advance(outages, clock, 30)
    return outages


def advance(outages: PresenceOutages, clock: Clock, seconds: int) -> None:
    """Time passes, with a flush each 10 s that tells of all."""
    for _ in range(0, seconds, 10):
        clock.now += 10
        outages.flushed(clock.now, list(outages.unreached))


def test_a_server_that_starts_waits_for_a_flush_and_the_grace() -> None:
    clock = Clock()
    outages = PresenceOutages(["a"], ttl_s=120, grace_s=30, clock=clock)
    clock.now += 30
    assert not outages.can_judge("a")
    outages.flushed(clock.now, ["a"])
    clock.now += 29
    assert not outages.can_judge("a")
    clock.now += 1
    assert outages.can_judge("a")
    assert outages.to_notice() == set(), "it has had no outage"


def test_an_outage_concerns_its_zone_until_the_grace_is_over() -> None:
    clock = Clock()
    outages = steady(clock)
    outages.began("a")
    assert (outages.can_judge("a"), outages.can_judge("b")) == (False, True)
    outages.flushed(clock.now - 1, ["a"])
    assert outages.unreached == {"a": clock.now}, "that flush began before the outage"
    advance(outages, clock, 10)
    assert outages.unreached == {}
    assert outages.to_notice() == {"a"}
    advance(outages, clock, 30)
    assert outages.can_judge("a")
    assert outages.to_notice() == set()


def test_an_outage_that_lasts_has_the_zones_told_of_all_once() -> None:
    clock = Clock()
    outages = steady(clock)
    began = clock.now
    for _ in range(3):
        outages.all_began()
        clock.now += 10
    assert outages.unreached == {"a": began, "b": began}
    assert outages.to_notice() == {"a", "b"}


def test_a_server_that_stood_still_judges_nobody() -> None:
    clock = Clock()
    outages = steady(clock)
    clock.now += 61
    assert not outages.can_judge("a")
    outages.flushed(clock.now, [])
    assert outages.unreached == {"a": clock.now, "b": clock.now}
    assert outages.to_notice() == {"a", "b"}
