"""The API's description as a page for people, which needs nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Final

import orjson

from dispatcher.core.errors import PROBLEMS
from dispatcher.web.endpoints import ENDPOINTS
from dispatcher.web.refusal_codes import codes_of

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem}"
    "code,pre{font:14px/1.4 ui-monospace,monospace}pre{background:#8881;padding:1rem;overflow:auto}"
    "h2{margin-top:2.5rem}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
    ":root{color-scheme:light dark}"
)


def render() -> bytes:
    """The page as HTML."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>dispatcher: API</title>",
        "<meta name=viewport content='width=device-width'>",
        f"<style>{_STYLE}</style><h1>dispatcher: API</h1>",
        "<p>For programs: <a href=/openapi.json>openapi.json</a>.</p>",
    ]
    for endpoint in ENDPOINTS:
        role = f" ({endpoint.role})" if endpoint.role else ""
        parts.append(
            f"<h2><code>{endpoint.method} {escape(endpoint.path)}</code></h2>"
            f"<p>{escape(endpoint.summary)}{role} → {endpoint.status}</p>"
        )
        for model in (*endpoint.body, *((endpoint.query,) if endpoint.query else ())):
            schema = orjson.dumps(model.model_json_schema(), option=orjson.OPT_INDENT_2).decode()
            parts.append(
                f"<details><summary><code>{model.__name__}</code></summary>"
                f"<pre>{escape(schema)}</pre></details>"
            )
        codes = dict.fromkeys(codes_of(endpoint))
        if codes:
            listed = ", ".join(f"<a href='#{code}'><code>{code}</code></a>" for code in codes)
            parts.append(f"<p>Refusals: {listed}</p>")
    parts.append("<h2>Problems</h2><table><tr><th>response_code<th>status<th>message")
    parts += (
        f"<tr id={p.code}><td><code>{p.code}</code><td>{p.status}<td>{escape(p.message)}"
        for p in PROBLEMS.values()
    )
    return "".join((*parts, "</table></html>")).encode()
