"""docs/security.md is true: the tests and settings that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

from dispatcher.config import ENV_PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_threat_has_something_that_shows_it() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        shown_by = row.strip("|").split("|")[-1]
        files = re.findall(r"`((?:tests|bench)/[\w/]+\.py)`", shown_by)
        assert files, row
        assert [file for file in files if not (ROOT / file).exists()] == [], row


def test_every_setting_that_it_names_exists() -> None:
    named = {name.removeprefix(ENV_PREFIX).lower() for name in re.findall(r"DISPATCHER_\w+", PAGE)}
    assert named <= set(Settings.model_fields)
    assert "(docs/security.md)" in (ROOT / "README.md").read_text()
