"""`dispatcher rebuild`: a zone's live state is dropped and loaded anew from Postgres."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from dispatcher.live.keys import Keys, keys_of
from dispatcher.operations.workbench import Workbench

#: What Postgres gives back, and what it does not.
_LOADED: Final = ("trip", "driver")
_LOST: Final = ("offers", "passed", "claim")
_KEPT: Final = ("limit", "barred", "presence", "connections", "idem")


async def rebuild(bench: Workbench, zone: str) -> dict[str, Any]:
    """How many keys of each kind the zone had (`before`) and has (`after`)."""
    keys = keys_of(zone)
    before = await _counts(bench, keys)
    await bench.rehydration.rebuild(zone)
    after = await _counts(bench, keys)
    return {"zone": zone, "before": dict(before), "after": dict(after)}


async def _counts(bench: Workbench, keys: Keys) -> Counter[str]:
    counts: Counter[str] = Counter(dict.fromkeys((*_LOADED, *_LOST, *_KEPT), 0))
    async for page in bench.live.comparison.keys_of_zone(keys, tuple(counts)):
        for kind, ids in page.items():
            counts[kind] += len(ids)
    return counts


def rebuild_lines(result: dict[str, Any]) -> list[str]:
    """What was loaded, and what Postgres does not know: what of that stayed, and what is gone."""
    before, after = result["before"], result["after"]
    return [
        f"{result['zone']}: loaded {after['trip']} trips and {after['driver']} drivers from Postgres "
        f"(there were {before['trip']} and {before['driver']})",
        "gone, since Postgres does not have it: "
        f"the open offers of {before['offers']} trips, which are offered anew; who let offers of "
        f"{before['passed']} trips pass; {before['claim']} claims, whose commits Postgres still guards; "
        "finished trips; positions of drivers who are offline",
        "kept, though Postgres does not have it: positions of online drivers that are newer than the "
        f"saved ones; {after['limit']} logs of limits; {after['connections']} users' connections; "
        f"{after['idem']} answers and refusals; who may not have {after['barred']} trips; the stream",
    ]
