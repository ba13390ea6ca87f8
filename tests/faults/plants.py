"""Known bugs, each planted into a copy of the product by a few changed lines, and the checks that have to see it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import asyncpg

_ROOT = Path(__file__).resolve().parents[2]
#: Python runs this first: modules that were changed are taken from here, all others from where they are, so that
#: they need not be compiled anew.
_INSTEAD = """
import importlib.util, pathlib, sys

HERE = pathlib.Path(__file__).parent

class Changed:
    @staticmethod
    def find_spec(name, path=None, target=None):
        file = HERE / f"{name.replace('.', '/')}.py"
        return importlib.util.spec_from_file_location(name, file) if file.exists() else None

sys.meta_path.insert(0, Changed)
import dispatcher.resources
dispatcher.resources.LUA_DIR, dispatcher.resources.SQL_DIR = HERE / "lua", HERE / "sql"
"""


class Edit(NamedTuple):
    """A text that stands once in a file of the product, and what stands there instead."""

    file: str
    text: str
    instead: str


@dataclass(frozen=True)
class Plant:
    """A bug by its name; each of the checks `seen_by` has to find it."""

    name: str
    seen_by: frozenset[str]
    edits: Sequence[Edit]

    def copy_to(self, directory: Path) -> None:
        """Makes what a server with `directory` in its PYTHONPATH runs: the product, and the bug in it."""
        for name in ("lua", "sql"):
            shutil.copytree(_ROOT / name, directory / name)
        (directory / "sitecustomize.py").write_text(_INSTEAD)
        for edit in self.edits:
            file = directory / edit.file
            before = (file if file.exists() else _ROOT / edit.file).read_text()
            assert before.count(edit.text) == 1, f"{edit.file} has changed: {edit.text!r}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(before.replace(edit.text, edit.instead))

    async def install(self, directory: Path, database_url: str) -> None:
        """Puts the changed functions of the copy into a migrated database."""
        changed = {edit.file for edit in self.edits if edit.file.endswith(".sql")}
        connection = await asyncpg.connect(database_url)
        try:
            for file in sorted(changed):
                await connection.execute((directory / file).read_text())
        finally:
            await connection.close()


_ACCEPT = "lua/claim_accept.lua"
_APPLY = "sql/functions/apply_changes.sql"
_SETTLE = "lua/settle_changes.lua"
_COORDINATOR = "dispatcher/service/coordinator.py"

PLANTS = (
    Plant(
        "a claim and a commit that look at no state",
        frozenset({"one_winner", "trips_have_an_order"}),
        (
            Edit(
                _ACCEPT,
                "if status == 'accepted' or status == 'arrived' or status == 'ongoing' then",
                "if status == 'ongoing' then",
            ),
            Edit(_ACCEPT, "elseif status ~= 'pending' then", "elseif status == 'expired' then"),
            Edit(
                _APPLY,
                "ELSE t.version = change.expect_version AND t.current_status = ANY (change.sources)",
                "ELSE t.version = change.expect_version",
            ),
            Edit(
                _APPLY,
                "AND t.version = change.expect_version AND t.current_status = ANY (change.sources);",
                "AND t.version = change.expect_version;",
            ),
        ),
    ),
    Plant(
        "an answer before the commit",
        frozenset({"successes_are_durable"}),
        (
            Edit(
                _COORDINATOR,
                "outcome = await self._commit(decider, keys, attempt, change, answer, deadline, asked_s)",
                "outcome = Outcome(OutcomeCode.OK)\n"
                "                asyncio.get_running_loop().call_later(\n"
                "                    0.3, lambda: asyncio.ensure_future(\n"
                "                        self._commits.commit(change, answer)))",
            ),
        ),
    ),
    Plant(
        "a replay that is not stored",
        frozenset({"one_answer_a_key", "successes_are_durable"}),
        (Edit(_COORDINATOR, "        if attempt.key is None:\n", "        if attempt is not None:\n"),),
    ),
    Plant(
        "a release that forgets the driver",
        frozenset({"drivers_have_an_order", "redis_equals_postgres"}),
        (Edit(_SETTLE, "if is_newer and change.effect == 'free' and", "if false and"),),
    ),
    Plant(
        "an event that the stream is not told",
        frozenset({"every_event_is_heard"}),
        (Edit(_SETTLE, "if event ~= '' then", "if event ~= '' and change.effect ~= 'free' then"),),
    ),
    Plant(
        "a limit that admits three more",
        frozenset({"limits_are_kept"}),
        (Edit("lua/lib/limits.lua", "if used >= max_calls then", "if used >= max_calls + 3 then"),),
    ),
    Plant(
        "a change without its event",
        frozenset({"versions_are_gapless", "successes_are_durable"}),
        (
            Edit(
                _APPLY,
                "WHERE change.event IS NOT NULL AND change.idx = ANY (applied);\n    END IF;",
                "WHERE change.event <> 'arrived' AND change.idx = ANY (applied);\n    END IF;",
            ),
        ),
    ),
    Plant(
        "a refusal that was true once",
        frozenset({"trips_have_an_order"}),
        (
            Edit(
                _ACCEPT, "elseif status ~= 'pending' then",
                "elseif status ~= 'pending' or version == '3' then",
            ),
        ),
    ),
    Plant(
        "a step that the table does not have",
        frozenset({"trips_have_an_order"}),
        (
            Edit(
                "dispatcher/core/transitions.py",
                '"complete", _DRIVER, frozenset({Status.ONGOING})',
                '"complete", _DRIVER, frozenset({Status.ONGOING, Status.ARRIVED})',
            ),
        ),
    ),
)  # fmt: skip
