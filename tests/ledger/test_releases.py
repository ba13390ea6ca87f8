"""Only who has a trip gives it back, whatever the live state believes."""

from __future__ import annotations

import pytest

from dispatcher.core.transitions import RELEASE
from dispatcher.core.trips import Status, Trip
from dispatcher.ledger.changes import Change
from tests.ledger.harness import AT_MS, LedgerDatabase, driver, put_trip, start_with


@pytest.mark.parametrize(("by", "outcome"), [("holder", "ok"), ("another", "stale")])
@pytest.mark.parametrize("goes_offline", [True, False])
async def test_a_release_checks_whose_trip_it_is(
    ledger: LedgerDatabase, by: str, outcome: str, goes_offline: bool
) -> None:
    await start_with(ledger, driver("holder"), driver("another"))
    trip = Trip(
        id="z_1", zone="z", customer_id="c1", vehicle_type="car", pickup_lat=50.1, pickup_lng=8.6,
        created_at=AT_MS, updated_at=AT_MS, current_status=Status.ACCEPTED, version=7,
        driver_id="holder",
    )  # fmt: skip
    await put_trip(ledger.connection, trip)
    change = Change(
        trip_id=trip.id, expect_version=7, sources=tuple(RELEASE.sources), to_status="pending",
        zone="z", event="released", actor_id=by, actor_role="driver", payload="{}", at_ms=AT_MS + 1,
    )  # fmt: skip
    if goes_offline:
        change = change._replace(
            set_driver=by, set_zone="z", set_online=False, set_available="available",
            set_vehicle="car", expect_driver_version=0,
        )  # fmt: skip
    ((said, _, _),) = await ledger.commit(change)
    assert said == outcome
    row = await ledger.connection.fetchrow("SELECT driver_id FROM trip_requests WHERE id = 'z_1'")
    assert row["driver_id"] == (None if outcome == "ok" else "holder")
