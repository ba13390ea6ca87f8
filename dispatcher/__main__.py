"""The `dispatcher` command, also by `python -m dispatcher`."""

# ruff: noqa: E402  imports come after the first statement, which is about them

from __future__ import annotations

import gc

# What a command imports stays: to look for garbage amid that takes a tenth of a server's start.
gc.set_threshold(50_000, 20, 100)

from dispatcher.cli import main

if __name__ == "__main__":
    main()
