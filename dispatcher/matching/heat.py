"""Where work is waiting: what is known of trips and drivers, counted by H3 cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import h3

#: What operators see: cells of some 0.7 km², as wide as a walk of a quarter of an hour.
_FINE: Final = 8
#: What drivers see: cells of some 5 km². Where to go is a question of districts.
_COARSE: Final = 7
#: Drivers are shown customers by steps of so many, and nothing of fewer. Whoever knows the others of a
#: step learns of the one that completes it: docs/matching.md says so.
CUSTOMERS_A_STEP: Final = 3
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
    customers: set[str] = field(default_factory=set)
    customers_waiting: set[str] = field(default_factory=set)

    def add(self, other: _Cell) -> None:
        self.asked += other.asked
        self.waiting += other.waiting
        self.free_drivers += other.free_drivers
        self.customers |= other.customers
        self.customers_waiting |= other.customers_waiting


class HeatMap:
    """Demand and supply of a zone by cell. Whom a cell counts stays in here."""

    def __init__(
        self, trips: Iterable[AskedTrip] = (), free_drivers: Iterable[tuple[float, float]] = ()
    ) -> None:
        """`free_drivers` are their places (lat, lng in degrees)."""
        self._cells: dict[str, _Cell] = {}
        for trip in trips:
            cell = self._at(trip.lat, trip.lng)
            if trip.is_new:
                cell.asked += 1
                cell.customers.add(trip.customer_id)
            if trip.is_waiting:
                cell.waiting += 1
                cell.customers_waiting.add(trip.customer_id)
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

    def for_drivers(self) -> dict[str, Any]:
        """Coarser cells, without those in which too few customers have asked. Each counts once, and they
        are told in steps."""
        coarse: dict[str, _Cell] = {}
        for name, cell in self._cells.items():
            coarse.setdefault(h3.cell_to_parent(name, _COARSE), _Cell()).add(cell)
        cells = {
            name: (_step(len(cell.customers)), _step(len(cell.customers_waiting)), cell.free_drivers)
            for name, cell in coarse.items()
        }
        return _picture(_COARSE, {name: counts for name, counts in cells.items() if any(counts[:2])})


def _step(customers: int) -> int:
    return customers - customers % CUSTOMERS_A_STEP


def _picture(resolution: int, cells: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
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
