"""Trips from their hashes: what is kept of the fields' orders, whatever stands in Redis."""

from __future__ import annotations

import pytest

from dispatcher.core.trips import Trip, layout_of
from dispatcher.live.hashes import trip_from_flat

TRIP = Trip("z_1", "z", "c1", "car", 40.75, -73.98, 1, 1, dropoff_lat=40.7, dropoff_lng=-73.9)
#: No trip has so many fields, nor such a long one.
TOO_MUCH = {"many": {f"f{n}": "1" for n in range(10_000)}, "long": {"f" * 1_000_000: "1"}}


def test_fields_that_are_not_the_trip_s_are_passed_over() -> None:
    flat = TRIP.to_hash()
    more = ["later", "1", *flat, "wave", "3", "waiting_since", "1"]
    assert trip_from_flat(more) == TRIP
    backwards = [part for at in range(len(flat) - 2, -1, -2) for part in flat[at : at + 2]]
    assert trip_from_flat(backwards) == TRIP


@pytest.mark.parametrize("more", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_hash_that_is_far_too_large_is_refused_and_not_remembered(more: dict[str, str]) -> None:
    flat = TRIP.to_hash()
    hash_ = dict(zip(flat[::2], flat[1::2], strict=True)) | more
    kept = layout_of.cache_info().currsize
    with pytest.raises(ValueError, match="fields"):
        Trip.from_hash(hash_)
    with pytest.raises(ValueError, match="fields"):
        trip_from_flat([part for pair in hash_.items() for part in pair])
    assert layout_of.cache_info().currsize == kept
