"""The limit of open files is raised at start, and connections stay below it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dispatcher.config import Settings
from dispatcher.web.door import DoorLimits
from dispatcher.web.open_files import possible_connections

_RAISED = """
import resource
from dispatcher.web.open_files import raise_open_files
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
hard = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
limit = raise_open_files()
assert limit == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0], limit
assert raise_open_files() == limit
"""


def test_the_limit_is_raised_to_what_is_allowed() -> None:
    done = subprocess.run([sys.executable, "-c", _RAISED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("open_files", "possible"), [(64, 32), (1_024, 768), (65_536, 65_280)])
def test_connections_stay_below_it(open_files: int, possible: int) -> None:
    assert possible_connections(open_files) == possible


def test_the_limits_are_the_settings() -> None:
    settings = Settings(max_connections_per_ip=7, head_timeout_s=1.5, ban_s=2)
    limits = DoorLimits.of(settings, 99)
    assert (limits.max_connections, limits.max_connections_per_ip) == (99, 7)
    assert (limits.head_timeout_s, limits.ban_s, limits.rate) == (1.5, 2, settings.limit_connection)
    assert DoorLimits.of(Settings(), DoorLimits().max_connections) == DoorLimits()
