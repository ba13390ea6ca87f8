"""`dispatcher fsck`: compares Redis with Postgres, and repairs what differs, one thing at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from dispatcher.comparison import drift_check, queue_looks
from dispatcher.operations.tables import table
from dispatcher.operations.workbench import Workbench
from dispatcher.service.drift import Drift, DriftKind
from dispatcher.service.repairs import Repairs

#: Things that are named; all are counted, and repaired where that is asked for.
_NAMED: Final = 1_000
#: Things that are remembered, so that what both engines name is told once; a bound on memory.
_REMEMBERED: Final = 100_000


async def fsck(bench: Workbench, zones: list[str], *, repairs: bool) -> dict[str, Any]:
    """`drift` by zone and kind, `found`: the first things that differ, each with `repaired` (None where
    that was not asked for), `remaining`: how many still differ, and `unnamed`: how many more were found.
    """
    check = drift_check(bench.settings, bench.live, bench.ledger)
    repair = Repairs(
        check=check,
        scripts=bench.live.comparison,
        mending=bench.live.mending,
        state=bench.live.state,
        claims=bench.live.claims,
        presence=bench.live.presence,
        queues=queue_looks(bench.live, bench.ledger),
        database=bench.ledger.database,
        rehydration=bench.rehydration,
        presence_ttl_s=bench.settings.presence_ttl_s,
    )
    counts = {zone: Counter[DriftKind]() for zone in zones}
    told: set[tuple[str, DriftKind, str]] = set()
    found: list[dict[str, Any]] = []
    remaining = unnamed = 0
    for zone in zones:
        async for drift in check.check(zone, every_key=True):
            if (drift[:3]) in told:
                continue  # it is named by Postgres and by Redis
            is_repaired = await repair.repair(drift) if repairs else None
            counts[zone][drift.kind] += 1
            remaining += not is_repaired
            if len(told) < _REMEMBERED:
                told.add(drift[:3])
            if len(found) < _NAMED:
                found.append(_named(drift, is_repaired))
            else:
                unnamed += 1
    return {
        "drift": {z: {k.value: counts[z][k] for k in DriftKind} for z in zones},
        "found": found,
        "remaining": remaining,
        "unnamed": unnamed,
    }


def _named(drift: Drift, is_repaired: bool | None) -> dict[str, Any]:
    return {
        "zone": drift.zone, "kind": drift.kind.value, "subject": drift.subject,
        "detail": drift.detail, "repaired": is_repaired,
    }  # fmt: skip


def fsck_lines(result: dict[str, Any]) -> list[str]:
    """A table of what differs, and the counts below."""
    lines: list[str] = []
    if found := result["found"]:
        said = {True: "repaired", False: "NOT repaired", None: "-"}
        rows = [(f["zone"], f["kind"], f["subject"], said[f["repaired"]], f["detail"]) for f in found]
        lines += [*table(("zone", "kind", "what", "repair", "how it differs"), rows), ""]
    if result["unnamed"]:
        lines.append(f"and {result['unnamed']} more that are not named")
    for zone, counts in result["drift"].items():
        some = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
        lines.append(f"{zone}: {some or 'no drift'}")
    return lines
