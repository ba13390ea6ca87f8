"""The log lines that operators search for."""

from __future__ import annotations

import io
import json

import structlog

from dispatcher import observe
from dispatcher.config import Settings


def test_the_three_lines() -> None:
    before = structlog.get_config()
    out = io.BytesIO()
    try:
        observe.configure(Settings(), out)
        for code in (
            "rate_limit_exceeded",
            "version_conflict",
            "trip_already_assigned",
            "trip_not_found",
        ):
            observe.refusal(code, user="d1", trip_id=None)
    finally:
        structlog.configure(**before)
        observe._crowd.lines = None
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("Rate limit exceeded", "warning"),
        ("Optimistic lock conflict", "info"),
        ("Trip already assigned", "info"),
    ]
    assert lines[0]["user"] == "d1"
    assert lines[0]["logger"] == "dispatcher.refusals"
    assert lines[0]["timestamp"].endswith("Z")
