"""Where work is waiting: what is known of trips and drivers, counted by H3 cell."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import h3

from dispatcher.matching.model import Place

#: What operators see: cells of some 0.7 km², as wide as a walk of a quarter of an hour.
_FINE: Final = 8
#: What drivers see: cells of some 5 km². Where to go is a question of districts.
_COARSE: Final = 7
#: Drivers are shown no fewer customers than this: of cells without any, one in a hundred seems to have
#: so many (`noise`).
FEWEST_SHOWN: Final = 6
#: Cells without customers are counted, too, as far from any driver as this: some 5 to 7 km.
_CELLS_AROUND: Final = 2
#: Cells of one picture. Those with the most of everything are in it.
_MOST_CELLS: Final = 1_000


class AskedTrip(NamedTuple):
    """A trip of the last minutes: its pickup in degrees, its customer, and whether it waits."""

    lat: float
    lng: float
    customer_id: str
    is_waiting: bool
    #: Whether it was asked for in the last minutes; a trip that was given back may be older.
    is_new: bool = True


@dataclass(slots=True)
class _Cell:
    asked: int = 0
    waiting: int = 0
    free_drivers: int = 0


class HeatMap:
    """Demand and supply of a zone by cell, exactly: for operators."""

    def __init__(self, trips: Iterable[AskedTrip] = (), free_drivers: Iterable[Place] = ()) -> None:
        """`free_drivers` are their places (lat, lng in degrees)."""
        self._cells: dict[str, _Cell] = {}
        for trip in trips:
            cell = self._at(trip.lat, trip.lng)
            cell.asked += trip.is_new
            cell.waiting += trip.is_waiting
        for place in free_drivers:
            self._at(*place).free_drivers += 1

    def _at(self, lat: float, lng: float) -> _Cell:
        return self._cells.setdefault(h3.latlng_to_cell(lat, lng, _FINE), _Cell())

    def scarce_cells(self) -> int:
        """In how many cells more trips wait than drivers are free."""
        return sum(cell.waiting > cell.free_drivers for cell in self._cells.values())

    def for_operators(self) -> dict[str, Any]:
        """Every cell with its counts."""
        cells = {
            name: (cell.asked, cell.waiting, cell.free_drivers) for name, cell in self._cells.items()
        }
        return _picture(_FINE, cells)


#: By cell: customers who asked, those of them who wait, free drivers.
CellCounts = Mapping[str, tuple[int, int, int]]


def noise() -> int:
    """A random number that is k with the probability 2^-|k| / 3.

    The one by which two coins differ that are tossed until they show tails. A count to which it is added
    is at most twice as likely, or half as likely, to come out as any number for one customer more.
    """
    return _heads() - _heads()


def _heads() -> int:
    bits = secrets.randbits(64)
    return (~bits & (bits + 1)).bit_length() - 1


def counts_for_drivers(
    trips: Iterable[AskedTrip],
    free_drivers: Iterable[Place],
    drivers: Iterable[Place],
    draw: Callable[[], int] = noise,
) -> CellCounts:
    """What drivers are told: counts with noise, in coarser cells, of few customers nothing.

    The same trips must not be counted anew: the noise of several counts averages out. `trips` are those
    of a time of which no other picture tells. A customer counts once, in the cell of their first one.
    `drivers` are all of the zone: which cells are looked at must not depend on customers.
    """
    customers: dict[str, tuple[str, bool]] = {}
    for trip in trips:
        here = (h3.latlng_to_cell(trip.lat, trip.lng, _COARSE), False)
        cell, is_waiting = customers.get(trip.customer_id, here)
        customers[trip.customer_id] = (cell, is_waiting or trip.is_waiting)
    asked = Counter(cell for cell, _ in customers.values())
    waiting = Counter(cell for cell, is_waiting in customers.values() if is_waiting)
    free = Counter(h3.latlng_to_cell(*place, _COARSE) for place in free_drivers)
    of_drivers = {h3.latlng_to_cell(*place, _COARSE) for place in drivers}
    around = {cell for center in of_drivers for cell in h3.grid_disk(center, _CELLS_AROUND)}
    told = {cell: (asked[cell] + draw(), waiting[cell] + draw(), free[cell] + draw()) for cell in around}
    return {
        cell: (many, min(many, _shown(wait)), max(0, supply))
        for cell, (demand, wait, supply) in told.items()
        if (many := _shown(demand))
    }


def _shown(customers: int) -> int:
    return customers if customers >= FEWEST_SHOWN else 0


def picture_for_drivers(counts: CellCounts) -> dict[str, Any]:
    """The counts with the cells' outlines."""
    return _picture(_COARSE, counts)


def _picture(resolution: int, cells: CellCounts) -> dict[str, Any]:
    most = sorted(cells.items(), key=lambda cell: (-sum(cell[1]), cell[0]))[:_MOST_CELLS]
    return {
        "resolution": resolution,
        "cells": [
            {
                "cell": name,
                "boundary": [[round(lat, 5), round(lng, 5)] for lat, lng in h3.cell_to_boundary(name)],
                "asked": asked,
                "waiting": waiting,
                "free_drivers": free_drivers,
            }
            for name, (asked, waiting, free_drivers) in most
        ],
    }
