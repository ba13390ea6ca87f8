"""What an error reply means is told by its code, to the end of the code."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from dispatcher.core.errors import CorruptState, StoreUnavailable
from dispatcher.live.redis_errors import error_of, is_corrupt, is_demoted, is_no_help


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("BUSY Redis is busy running a script", StoreUnavailable),
        ("BUSYGROUP Consumer Group name already exists", ResponseError),
        ("NOGROUP No such key 'k' script: on @user_script:18.", ResponseError),
        ("LOADING Redis is loading the dataset in memory", StoreUnavailable),
        ("WRONGTYPE Operation against a key", CorruptState),
        ("ERR user_script:3: attempt to index a nil value", CorruptState),
        ("NOPERM this user has no permissions", StoreUnavailable),
        ("NOPERM User d has no permissions script: on @user_script:18.", StoreUnavailable),
        ("ERR ACL failure in script: User d may not script: on @user_script:18.", StoreUnavailable),
        ("ERR unknown command 'EVALSHA', with args beginning with:", StoreUnavailable),
        ("ERR Invalid stream ID specified as stream command argument", ResponseError),
    ],
)
def test_codes(text: str, means: type[Exception]) -> None:
    assert type(error_of(ResponseError(text))) is means
    assert is_corrupt(text) is (means is CorruptState)
    assert is_no_help(ResponseError(text)) is (means is StoreUnavailable)


def test_a_demoted_node() -> None:
    assert is_demoted(ResponseError("READONLY You can't write against a read only replica."))
    assert not is_demoted(ResponseError("READONLYISH what it is not"))
