"""The API's descriptions, and a page of them for people: Swagger UI, and all problems.

Without scripts the page still has the problems, and links to the documents for programs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from html import escape
from pathlib import Path
from typing import Final

from dispatcher.core.errors import PROBLEMS
from dispatcher.web import asyncapi, openapi
from dispatcher.web.page_files import PageFiles, content_policy, read_folder

_FOLDER: Final = Path(__file__).parent / "docs"
_PAGE: Final = "index.html"
_PLACE_OF_PROBLEMS: Final = b"<!-- problems -->"


class ApiPage(PageFiles):
    """The page, its files, and a copy of the documents: the page may be shown where they are not."""

    def __init__(self, vehicle_types: Collection[str]) -> None:
        self.openapi = openapi.render(vehicle_types)
        self.asyncapi = asyncapi.render()
        files = read_folder(_FOLDER)
        files[_PAGE] = files[_PAGE].replace(_PLACE_OF_PROBLEMS, _problem_rows())
        files |= {"openapi.json": self.openapi, "asyncapi.json": self.asyncapi}
        # The viewer's style sheet holds its icons itself.
        super().__init__(files, content_policy("data:"))


class ApiPageOnDemand:
    """Makes the page when it is first asked for: a server that starts has other things to do."""

    def __init__(self, vehicle_types: Collection[str]) -> None:
        self._vehicle_types = vehicle_types
        self._page: ApiPage | None = None

    async def get(self) -> ApiPage:
        """The page. It is made beside the loop, which goes on; if two ask at once, it is made twice."""
        if self._page is None:
            self._page = await asyncio.to_thread(ApiPage, self._vehicle_types)
        return self._page


def _problem_rows() -> bytes:
    rows = (
        f'<tr id="{escape(problem.code)}"><td><code>{escape(problem.code)}</code>'
        f"<td>{problem.status}<td>{escape(problem.message)}"
        for problem in PROBLEMS.values()
    )
    return "\n".join(rows).encode()
