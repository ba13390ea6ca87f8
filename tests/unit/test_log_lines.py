"""The log lines that operators search for."""

from __future__ import annotations

import io
import json

import structlog

from dispatcher.config import Settings
from dispatcher.observe import logs
from dispatcher.observe.refusal_log import log_refusal
from dispatcher.observe.straight_lines import STRAIGHT_LINES


def test_the_three_lines() -> None:
    before = structlog.get_config()
    out = io.BytesIO()
    try:
        logs.configure(Settings(), out)
        for code in (
            "rate_limit_exceeded",
            "version_conflict",
            "trip_already_assigned",
            "trip_not_found",
        ):
            log_refusal(code, user="d1", trip_id=None)
    finally:
        structlog.configure(**before)
        STRAIGHT_LINES.write_through_structlog()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("Rate limit exceeded", "warning"),
        ("Optimistic lock conflict", "info"),
        ("Trip already assigned", "info"),
    ]
    assert lines[0]["user"] == "d1"
    assert lines[0]["logger"] == "dispatcher.refusals"
    assert lines[0]["timestamp"].endswith("Z")
