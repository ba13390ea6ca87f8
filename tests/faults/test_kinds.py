"""What docs/faults.md says of the suite is so."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults import kinds
from tests.faults.checker import CHECKS
from tests.faults.plants import PLANTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "faults.md").read_text()


def test_the_page_names_every_fault() -> None:
    names = {re.sub("_of_(redis|postgres)$", "", name) for name in kinds.BY_NAME}
    section = PAGE.split("## What happens")[1].split("## ")[0]
    assert names - set(re.findall(r"`(\w+)`", section)) == set()
    assert len(kinds.BY_NAME) == len(kinds.ALL), "two faults have one name"


def test_each_plant_is_seen_by_checks_that_there_are() -> None:
    assert {name for plant in PLANTS for name in plant.seen_by} <= {check.__name__ for check in CHECKS}
    for plant in PLANTS:
        assert plant.name in " ".join(PAGE.split()), plant.name
