"""What plans rounds is made of NumPy and SciPy, which the extra `matching` brings."""

from __future__ import annotations

import importlib
import importlib.util


def load_solver() -> bool:
    """Loads what plans rounds. False where the extra `matching` is not there.

    At the start, and not with the first round: for a tenth of a second, of a core that others leave to
    it, the event loop would get its turns late, in the very hour when drivers are scarce.
    """
    if importlib.util.find_spec("scipy") is None:
        return False
    importlib.import_module("dispatcher.matching.planner")
    importlib.import_module("dispatcher.matching.plenty")
    return True
