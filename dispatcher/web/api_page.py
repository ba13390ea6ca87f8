"""The API's description as a page for people: Swagger UI over the same document, and all problems.

Without scripts the page still has the problems, and links to the documents for programs.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Final

from dispatcher.core.errors import PROBLEMS
from dispatcher.web.page_files import PageFiles, content_policy, read_folder

_FOLDER: Final = Path(__file__).parent / "docs"
_PAGE: Final = "index.html"
_PLACE_OF_PROBLEMS: Final = b"<!-- problems -->"


class ApiPage(PageFiles):
    """The page, its files, and a copy of the documents: the page may be shown where they are not."""

    def __init__(self, openapi: bytes, asyncapi: bytes) -> None:
        files = read_folder(_FOLDER)
        files[_PAGE] = files[_PAGE].replace(_PLACE_OF_PROBLEMS, _problem_rows())
        files |= {"openapi.json": openapi, "asyncapi.json": asyncapi}
        # The viewer's style sheet holds its icons itself.
        super().__init__(files, content_policy("data:"))


def _problem_rows() -> bytes:
    rows = (
        f'<tr id="{escape(problem.code)}"><td><code>{escape(problem.code)}</code>'
        f"<td>{problem.status}<td>{escape(problem.message)}"
        for problem in PROBLEMS.values()
    )
    return "\n".join(rows).encode()
