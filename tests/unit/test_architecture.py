"""docs/architecture.md is true: its files exist, its states are those of the code, modules stay small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dispatcher.core.transitions import TRANSITIONS, Event
from dispatcher.core.trips import Status

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MAX_LINES = 300


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"\b(?:dispatcher|lua|sql|tests|bench|docs)/[\w./-]*[\w/]", PAGE))
    assert len(named) > 40
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_an_accept_goes_down_once_and_up_once() -> None:
    picture = PAGE.split("## An accept, down once and up once")[1].split("```")[1]
    files = re.findall(r"\b(?:dispatcher|lua|sql)/[\w./]*\.(?:py|lua|sql)", picture)
    floors = [re.sub(r"^dispatcher/(\w+)/.*", r"\1", file) for file in files]
    assert [f for f in floors if f in ("web", "service")] == ["web"] * 2 + ["service"] * 3 + ["web"]
    wings = [f for f in floors if f in ("live", "ledger")]
    assert wings == ["live", "live", "ledger", "ledger", "live"]


def test_the_states_are_those_of_the_table_of_transitions() -> None:
    section = PAGE.split("## States")[1].split("## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    documented = {
        (
            row[0].strip("`"),
            row[1].split(" ")[0],
            frozenset(row[2].split(", ")),
            frozenset(re.findall(r"`(\w+)`", row[3])),
            row[4].strip("`"),
        )
        for row in rows
    }
    table = {
        (
            t.event.value,
            t.action,
            frozenset(map(str, t.roles)),
            frozenset(map(str, t.sources)),
            str(t.target),
        )
        for t in TRANSITIONS
    }
    created = (Event.CREATED.value, "create", frozenset({"customer"}), frozenset(), str(Status.PENDING))
    assert documented == table | {created}


def test_the_readme_links_the_book() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "(docs/architecture.md)" in readme
    assert "(CONTRIBUTING.md)" in readme


MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("dispatcher", "bench")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_enough_to_be_read(module: str) -> None:
    assert len((ROOT / module).read_text().splitlines()) <= MAX_LINES
