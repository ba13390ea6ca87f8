"""The libraries inside the scripts of `lua/inspect/`, which a plain redis-cli runs as they stand.

    uv run python -m tests.lua.copies

brings them up to `lua/lib/`.
"""

from __future__ import annotations

import re

from dispatcher.resources import LUA_DIR

_COPY = re.compile(r'^--- @copy "(\w+)"\n.*?^--- @end$', re.MULTILINE | re.DOTALL)

INSPECTIONS = sorted(path.stem for path in (LUA_DIR / "inspect").glob("*.lua"))


def with_copies(text: str) -> str:
    """The text of an inspection with the libraries as they are in `lua/lib/`."""

    def copied(match: re.Match[str]) -> str:
        library = (LUA_DIR / "lib" / f"{match[1]}.lua").read_text()
        return f'--- @copy "{match[1]}"\n{library}--- @end'

    return _COPY.sub(copied, text)


if __name__ == "__main__":
    for name in INSPECTIONS:
        path = LUA_DIR / "inspect" / f"{name}.lua"
        path.write_text(with_copies(path.read_text()))
