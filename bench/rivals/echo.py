"""The ceiling of the stack: bare aiohttp on uvloop that parses the JSON of an accept and answers.

No identity, no limits, no engines. `POST /echo/{bytes}` answers with JSON of that size, so each
load can be held against an answer as large as the dispatcher's own.
"""

from __future__ import annotations

import orjson
from aiohttp import web
from listen import options, serve

ENVELOPE = len(orjson.dumps({"response_code": "trip_accepted", "trip": {"id": "", "filler": ""}}))


async def answer(request: web.Request) -> web.Response:
    body = orjson.loads(await request.read())
    trip = body["trip_request_id"]
    size = int(request.match_info["bytes"]) - ENVELOPE - len(trip)
    document = {"response_code": "trip_accepted", "trip": {"id": trip, "filler": "x" * size}}
    return web.Response(body=orjson.dumps(document), content_type="application/json")


async def build() -> web.Application:
    app = web.Application()
    app.router.add_post("/echo/{bytes}", answer)
    return app


if __name__ == "__main__":
    chosen = options("bare aiohttp").parse_args()
    serve(build, chosen.host, chosen.port)
