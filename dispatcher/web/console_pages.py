"""The operator's console as files; only map tiles may come from elsewhere, if a setting says so."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from dispatcher.web.page_files import PageFiles, content_policy, read_folder

_FOLDER: Final = Path(__file__).parent / "console"


class ConsolePages(PageFiles):
    """The console's page and its files, by name."""

    def __init__(self, tile_url: str | None = None) -> None:
        tile_sources = []
        if tile_url:
            url = urlsplit(tile_url)
            # {s} in a tile's address stands for one of several hosts.
            tile_sources.append(f"{url.scheme}://{url.netloc.replace('{s}', '*')}")
        super().__init__(read_folder(_FOLDER), content_policy(*tile_sources))
