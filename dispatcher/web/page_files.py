"""A page for people and its files: read once, served with a strict Content-Security-Policy.

Everything that a page runs and shows comes from this server: no script, style or call leads elsewhere,
and nothing stands inline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from dispatcher.core.errors import Refusal
from dispatcher.web.responses import HttpResponse

_PAGE: Final = "index.html"
#: The media type of each kind of file.
PAGE_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
}


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a folder that a page may have, by name; `index.html` is the page itself."""
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in PAGE_TYPES
    }


def content_policy(*image_sources: str) -> str:
    """Nothing but this server's own files and calls, and images from these sources as well."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            " ".join(("img-src 'self'", *image_sources)),
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


class PageFiles:
    """A page and its files, by name."""

    def __init__(self, files: Mapping[str, bytes], policy: str) -> None:
        self._files = files
        self._tags = {name: f'"{hashlib.sha256(body).hexdigest()[:20]}"' for name, body in files.items()}
        self._headers = {
            "Content-Security-Policy": policy,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Permissions-Policy": "geolocation=(), camera=(), microphone=()",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            # A server of another version brings other files: the browser asks each time.
            hdrs.CACHE_CONTROL: "no-cache",
        }

    def page(self, request: web.Request) -> HttpResponse:
        """The page itself."""
        return self._respond(request, _PAGE)

    def file(self, request: web.Request, name: str) -> HttpResponse:
        """One of the page's files. Raises Refusal not_found."""
        if name not in self._files or name == _PAGE:
            raise Refusal("not_found")
        return self._respond(request, name)

    def _respond(self, request: web.Request, name: str) -> HttpResponse:
        tag = self._tags[name]
        headers = self._headers | {hdrs.CONTENT_TYPE: PAGE_TYPES[Path(name).suffix], hdrs.ETAG: tag}
        if any(known.value == tag.strip('"') for known in request.if_none_match or ()):
            del headers[hdrs.CONTENT_TYPE]
            return HttpResponse(304, b"", headers)
        return HttpResponse(200, self._files[name], headers)
