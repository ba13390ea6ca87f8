"""What keeps offers from a driver: one list of codes, for the driver, for operators and for `why`."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Obstacle(StrEnum):
    """What keeps an offer from a driver, in the order in which it is looked at.

    `lua/lib/candidates.lua` and `lua/inspect/why.lua` name their filters by what they keep back.
    """

    # Of the driver and the trip: where it is, and whether it waits.
    OTHER_ZONE = "other_zone"
    TRIP_NOT_PENDING = "trip_not_pending"
    TRIP_CLAIMED = "trip_claimed"
    # Of the driver alone, whatever the trip, but for the vehicle.
    OFFLINE = "offline"
    UNAVAILABLE = "unavailable"
    ACTIVE_TRIP = "active_trip"
    OTHER_VEHICLE_TYPE = "other_vehicle_type"
    NO_POSITION = "no_position"
    STALE_POSITION = "stale_position"
    NOT_PRESENT = "not_present"
    # What the driver has done with this trip, or may still do with it and others.
    BARRED = "barred"
    PASSED = "passed"
    ON_OFFER = "on_offer"
    ENOUGH_OFFERS = "enough_offers"
    # Of a driver who is asked for their place in a queue: it is lost, or they are asked already.
    NOT_IN_QUEUE = "not_in_queue"
    ASKED_IN_QUEUE = "asked_in_queue"
    # Where the driver is, as the trip's next wave sees it.
    OUT_OF_REACH = "out_of_reach"
    NOT_AMONG_NEAREST = "not_among_nearest"
    NO_PLACE_LEFT = "no_place_left"


#: A row of `why` that keeps nobody back: the round decides later.
ROUND_OF_MATCHING: Final = "round_of_matching"
