"""What is asked of a Redis on each new connection: whether the zones were loaded into this very one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog
from redis.exceptions import ResponseError

log = structlog.get_logger("dispatcher.redis")

_RUN_ID: Final = re.compile(r"run_id:(\w+)")


async def check_zones(connection: Any, epochs: Callable[[], Iterable[str]], script: str) -> str:
    """Makes the zones cold that another Redis than this one has loaded; returns its run id.

    Empty where there is no zone, or it does not say. `script` is the text of `mark_cold`; `epochs` are
    asked for again: a cluster may move other zones here meanwhile.
    """
    if not list(epochs()):
        return ""
    run_id = ""
    checked: set[str] = set()
    refused: list[ResponseError] = []
    try:
        await connection.send_command("INFO", "server")
        run_id = run_id_of(await connection.read_response())
    except ResponseError as error:
        refused.append(error)
    while run_id and (unchecked := set(epochs()) - checked):
        for epoch in unchecked:
            await connection.send_command("EVAL", script, 1, epoch, run_id)
            try:
                await connection.read_response()
            except ResponseError as error:
                refused.append(error)
        checked |= unchecked
    if refused:
        # What refuses this refuses a claim, too; the reconcile job looks again.
        log.warning("zones not checked on a new connection", zones=len(refused), error=str(refused[0]))
    return run_id


def run_id_of(info: Any) -> str:
    """The run id in the answer of INFO."""
    if isinstance(info, dict):  # a client has read it already
        return str(info["run_id"])
    (run_id,) = _RUN_ID.findall(str(info))
    return str(run_id)
