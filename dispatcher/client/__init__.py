"""A client for apps: typed answers, one key an intent, a socket that comes back.

    async with DriverClient(url, token) as driver:
        await driver.set_availability(is_online=True, location=(40.7559, -73.9864))
        async for event in driver.events():
            ...

It stands alone: of this project it knows only the core. docs/integrate.md shows it at work.
"""

from __future__ import annotations

from dispatcher.client.app import AppClient
from dispatcher.client.channel import Channel
from dispatcher.client.customer import CustomerClient
from dispatcher.client.driver import DriverClient
from dispatcher.client.events import (
    DriverChanged,
    DriverLocation,
    Event,
    FrameRefused,
    OfferWithdrawn,
    TripChanged,
    Welcome,
)
from dispatcher.client.http import HttpCalls, Token
from dispatcher.client.models import (
    AvailabilityAnswer,
    CustomerSnapshot,
    Driver,
    DriverSnapshot,
    DriverState,
    NearbyTrip,
    Offer,
    Page,
    Place,
    Trip,
)
from dispatcher.client.problems import ApiError, NoAnswer
from dispatcher.client.replies import Intent, Reply, new_key
from dispatcher.client.retries import CONNECTION_ERRORS, Retries
from dispatcher.client.socket import Socket

__all__ = [
    "CONNECTION_ERRORS",
    "ApiError",
    "AppClient",
    "AvailabilityAnswer",
    "Channel",
    "CustomerClient",
    "CustomerSnapshot",
    "Driver",
    "DriverChanged",
    "DriverClient",
    "DriverLocation",
    "DriverSnapshot",
    "DriverState",
    "Event",
    "FrameRefused",
    "HttpCalls",
    "Intent",
    "NearbyTrip",
    "NoAnswer",
    "Offer",
    "OfferWithdrawn",
    "Page",
    "Place",
    "Reply",
    "Retries",
    "Socket",
    "Token",
    "Trip",
    "TripChanged",
    "Welcome",
    "new_key",
]
