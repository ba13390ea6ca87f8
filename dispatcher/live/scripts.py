"""The Lua files: their texts with what they include, and the digests that Redis knows them by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from dispatcher.resources import LUA_DIR

_INCLUDE = re.compile(r'^--- @include "([a-z_]+)"$', re.MULTILINE)

#: What the names of scripts for operators begin with.
_INSPECTIONS = "inspect/"


def read_script(name: str, directory: Path = LUA_DIR) -> str:
    """The text of `lua/<name>.lua` with its includes, which are one level deep."""

    def included(match: re.Match[str]) -> str:
        return (directory / "lib" / f"{match[1]}.lua").read_text()

    return _INCLUDE.sub(included, (directory / f"{name}.lua").read_text())


class LuaScripts:
    """Scripts by name: `texts`, and `digests` (SHA-1, hexadecimal) as `EVALSHA` takes them."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = dict(texts)
        self.digests = {
            name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for name, text in self.texts.items()
        }
        self._by_digest = {self.digests[name]: text for name, text in self.texts.items()}

    def texts_for_calls(self) -> list[str]:
        """The texts of those that are no inspections.

        Lua's collector goes through all that Redis has loaded again and again, so that each script
        makes the others slower: without the inspections, a quarter of all code, losers cost 10 % less.
        """
        return [text for name, text in self.texts.items() if not name.startswith(_INSPECTIONS)]

    def text_of(self, digest: str) -> str:
        """The text of this digest. Raises KeyError."""
        return self._by_digest[digest]

    @classmethod
    def read(cls, directory: Path = LUA_DIR) -> LuaScripts:
        """Every script of a directory; those below it by their path, as `inspect/why`."""
        names = sorted(path.stem for path in directory.glob("*.lua"))
        names += sorted(f"{_INSPECTIONS}{path.stem}" for path in (directory / "inspect").glob("*.lua"))
        return cls({name: read_script(name, directory) for name in names})
