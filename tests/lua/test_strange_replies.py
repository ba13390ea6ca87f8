"""Replies that are not what a script's header says raise: nobody goes on with half of one."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.live.keys import keys_of
from dispatcher.live.limits import LimitScripts
from dispatcher.live.offers import OfferScripts
from dispatcher.live.positions import DriverFix, PositionScripts
from tests.harness.lua_zone import FIX_AGE_MS, START_MS, limit, make_trip


class _Saying:
    """A pipeline whose scripts all give one reply."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    async def run(self, *_: Any) -> Any:
        return self._reply


@pytest.mark.parametrize(
    "reply", [[], ["admitted"], ["warm", START_MS, 0, 0, 0], ["admitted", START_MS, 2, 0, 0],
              ["admitted", START_MS, 0, 0, 0, "more"]],
)  # fmt: skip
async def test_a_strange_reply_of_a_limit_raises(reply: list[Any]) -> None:
    pipeline: Any = _Saying(reply)
    with pytest.raises((ValueError, TypeError, LookupError)):
        await LimitScripts(pipeline).check_limit(keys_of("z"), [limit(5)])


_TAKEN = ["taken", "", 0, 0, 0]


@pytest.mark.parametrize(
    "reply",
    [[], ["taken", START_MS], ["warm", START_MS, [_TAKEN]], ["taken", START_MS, []],
     ["taken", START_MS, [_TAKEN, _TAKEN]], ["taken", START_MS, [["lost", "", 0, 0, 0]]],
     ["taken", START_MS, [["taken", ""]]], ["taken", START_MS, [["taken", "", 1, 0, 0]]]],
)  # fmt: skip
async def test_a_strange_reply_of_positions_raises(reply: list[Any]) -> None:
    pipeline: Any = _Saying(reply)
    with pytest.raises((ValueError, TypeError, LookupError)):
        await PositionScripts(pipeline).put_positions(
            keys_of("z"), "car", [DriverFix("d1", 50.1, 8.6, START_MS)], fix_age_ms=FIX_AGE_MS
        )


@pytest.mark.parametrize(
    "reply", [[], ["lost", START_MS, 1, 0, [], []], ["offered", START_MS, 1, 0, []]]
)
async def test_a_strange_reply_of_a_wave_raises(reply: list[Any]) -> None:
    pipeline: Any = _Saying(reply)
    with pytest.raises((ValueError, TypeError, LookupError)):
        await OfferScripts(pipeline).offer_trip(
            keys_of("z"), make_trip(), "{}", [], round_number=0, size=5, answer_ms=1, again_ms=1,
            max_open_offers=1, fix_age_ms=FIX_AGE_MS, max_wait_ms=1, ask_again=False,
        )  # fmt: skip


@pytest.mark.parametrize("reply", [[["z_1", 5]], [["z_1", 5, 1, "more"]]])
async def test_a_strange_reply_of_offers_raises(reply: list[Any]) -> None:
    pipeline: Any = _Saying(reply)
    with pytest.raises((ValueError, TypeError, LookupError)):
        await OfferScripts(pipeline).read_offers(keys_of("z"), "d1")
