"""`dispatcher why`: the explanation of the admin API, for a terminal."""

from __future__ import annotations

from typing import Any, Final

from dispatcher.core.actors import USER_ID
from dispatcher.core.errors import Refusal
from dispatcher.matching.model import Score
from dispatcher.operations.tables import table
from dispatcher.operations.workbench import Workbench
from dispatcher.service.explanation import Explanation

_PASSES: Final = {True: "yes", False: "NO", None: "-"}


async def explain(bench: Workbench, trip_id: str, driver_id: str) -> dict[str, Any]:
    """What Explanation.why says. Raises Refusal where there is no such trip or driver."""
    if not USER_ID.fullmatch(driver_id):
        raise Refusal("driver_not_found")
    explanation = Explanation(
        zones=bench.zones,
        scripts=bench.live.inspection,
        database=bench.ledger.database,
        authorities=bench.authorities,
        fix_age_s=bench.settings.fix_max_age_s,
    )
    return await explanation.why(trip_id, driver_id)


def explained_lines(found: dict[str, Any]) -> list[str]:
    """The verdict first, then each filter, then the score, then what happened."""
    rows = [(row["filter"], _PASSES[row["passes"]], row["saw"]) for row in found["filters"]]
    lines = [found["verdict"]["text"], "", *table(("filter", "passes", "saw"), rows)]
    lines += _score_lines(found["driver_id"], found["score"])
    if found["history"]:
        lines += ["", *table(("at", "what happened"), [(h["at"], h["text"]) for h in found["history"]])]
    return lines


def _score_lines(driver_id: str, score: dict[str, Any] | None) -> list[str]:
    if score is None:
        return []
    if "queue" in score:
        return ["", f"number {score['position']} in the queue {score['queue']}"]
    ranked = [{"driver_id": driver_id, **score}, *score["next"]]
    rows = [(row["driver_id"], *(f"{row[part]:.1f}" for part in Score._fields)) for row in ranked]
    return ["", *table(("score of", *Score._fields), rows)]
