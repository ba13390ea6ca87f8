"""Nobody is admitted more often than a limit allows, in any window that Redis decided on from end to end.

When within its call an intent was admitted, nobody outside can tell. So a breach is what no times within the calls
explain: more intents that succeeded than the limit admits, all of which began and ended within one window.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.faults.evidence import Evidence
from tests.faults.intents import Intent, intents
from tests.faults.linearizability import NEVER

#: The limits of a round: calls, and the window in s. Apps meet each of them now and then.
LIMITS = {
    "trip_accept": (6, 2),
    "trip_cancel": (3, 2),
    "general": (16, 2),
    "location_update": (40, 2),
}


def limits_are_kept(evidence: Evidence) -> Iterator[str]:
    """No user succeeded more often than a limit admits, in a window in which Redis decided."""
    spans: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for intent in intents(evidence):
        if intent.returned != NEVER:
            spans.setdefault((intent.user, _class(intent)), []).append((intent.called, intent.returned))
    for (user, name), known in spans.items():
        most, window_s = LIMITS[name]
        for called, _ in known:
            ends = sorted(end for begin, end in known if begin >= called and end < called + window_s)
            if len(ends) > most and not _was_undecided(evidence, called - window_s, ends[-1]):
                yield f"{user} had {len(ends)} {name} within {window_s} s, and {most} are allowed"
                break


def _was_undecided(evidence: Evidence, begin: float, end: float) -> bool:
    """Whether Redis was away or forgot, or its clock jumped, between these times."""
    return any(lost <= end and begin <= found for lost, found in evidence.history.undecided)


def _class(intent: Intent) -> str:
    if intent.event == "accepted":
        return "trip_accept"
    return "trip_cancel" if intent.event in ("cancelled", "released") else "general"
