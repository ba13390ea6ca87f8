"""The operator's console as files: read once, served with a strict Content-Security-Policy.

Everything that the page runs and shows comes from this server; only map tiles may come from
elsewhere, where the operator has set their address.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from dispatcher.core.errors import Refusal
from dispatcher.web.responses import HttpResponse

_FOLDER: Final = Path(__file__).parent / "console"
_PAGE: Final = "index.html"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


def _content_policy(tile_url: str | None) -> str:
    """Nothing but this server's own files and calls, and tiles from where the setting says."""
    images = ["'self'"]
    if tile_url:
        url = urlsplit(tile_url)
        # {s} in a tile's address stands for one of several hosts.
        images.append(f"{url.scheme}://{url.netloc.replace('{s}', '*')}")
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            f"img-src {' '.join(images)}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


class ConsolePages:
    """The page and its files, by name."""

    def __init__(self, tile_url: str | None = None) -> None:
        self._files = {
            path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES
        }
        self._tags = {
            name: f'"{hashlib.sha256(body).hexdigest()[:20]}"' for name, body in self._files.items()
        }
        self._headers = {
            "Content-Security-Policy": _content_policy(tile_url),
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
        headers = self._headers | {hdrs.CONTENT_TYPE: _TYPES[Path(name).suffix], hdrs.ETAG: tag}
        if any(known.value == tag.strip('"') for known in request.if_none_match or ()):
            del headers[hdrs.CONTENT_TYPE]
            return HttpResponse(304, b"", headers)
        return HttpResponse(200, self._files[name], headers)
