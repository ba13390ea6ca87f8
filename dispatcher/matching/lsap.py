"""SciPy's `linear_sum_assignment`, without the rest of `scipy.optimize`.

The function is a C extension of its own, `scipy/optimize/_lsap`, that needs NumPy alone. Its package
imports linear algebra, Fourier transforms and the compiler of Fortran signatures along with it: a third
of the time of a server's start, and 40 MB in each process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import Any


def load_alone() -> Callable[..., Any] | None:
    """The function from the file of its extension; None where SciPy keeps it elsewhere."""
    package = importlib.util.find_spec("scipy")
    if package is None:
        return None
    folders = [f"{folder}/optimize" for folder in package.submodule_search_locations or ()]
    found = PathFinder.find_spec("_lsap", folders)
    if found is None or found.loader is None:
        return None
    try:
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    except ImportError:  # it needs more of SciPy by now
        return None
    function: Callable[..., Any] | None = getattr(module, "linear_sum_assignment", None)
    return function


def load() -> Callable[..., Any]:
    """The function, alone where that can be. Raises ImportError where SciPy is not installed."""
    alone = load_alone()
    if alone is not None:
        return alone
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  a last resort, see above

    whole: Callable[..., Any] = linear_sum_assignment
    return whole
