"""`dispatcher demo`: a simulated city against a server of its own, and a check of every invariant."""

from dispatcher.demo.runner import run
from dispatcher.demo.server import DemoError

__all__ = ["DemoError", "run"]
