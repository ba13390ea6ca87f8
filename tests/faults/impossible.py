"""What a machine cannot bring about."""

from __future__ import annotations


class Impossible(Exception):
    """The fault is skipped, and the run says so; the message says why."""
