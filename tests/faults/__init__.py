"""Real processes under real faults: what apps were told and what the engines hold must agree afterwards.

`uv run python -m tests.faults --rounds 20 --seed 1` runs many rounds and prints a table.
"""

import pytest

pytest.register_assert_rewrite("tests.faults.run")
