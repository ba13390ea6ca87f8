"""A driver's app: goes online, takes what is offered, drives. `python docs/driver_app.py URL TOKEN`."""

import asyncio
import sys

from dispatcher.client import ApiError, DriverClient, NoAnswer, Offer, Trip, TripChanged

NEXT_STEP = {"accepted": "arrive", "arrived": "start", "ongoing": "complete"}


async def drive(driver: DriverClient, trip: Trip) -> None:
    while step := NEXT_STEP.get(trip.current_status):  # a real app waits for its driver's taps
        print(trip.current_status, trip.id, flush=True)
        trip = await getattr(driver, step)(trip.id)
    print(trip.current_status, trip.id, flush=True)


async def main(url: str, token: str) -> None:
    async with DriverClient(url, token) as driver:
        await driver.set_availability(is_online=True, location=(40.7559, -73.9864))
        async for event in driver.events():  # connects, and again whenever the connection is lost
            try:
                if isinstance(event, Offer) and driver.trip is None:
                    await drive(driver, await driver.accept(event.trip.id))
                elif isinstance(event, TripChanged) and driver.trip is not None:  # had it already
                    await drive(driver, event.trip)
            except (ApiError, NoAnswer) as refused:  # another driver was faster, for instance
                print(refused, flush=True)


asyncio.run(main(*sys.argv[1:]))
