"""What error replies of Redis mean."""

from __future__ import annotations

from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from dispatcher.core.errors import CorruptState, ReplyLost, StoreUnavailable

#: Errors of a server that starts, fails over, is full, read-only or forbids it: nothing was done.
#: redis-py has classes for some of them (one that is loading counts as a lost connection there) …
UNAVAILABLE_ERRORS = (
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
#: A node that says this has been demoted: the primary is another one now, behind the same name perhaps.
_DEMOTED_ERRORS = (MasterDownError, ReadOnlyError)
_DEMOTED_CODES = ("MASTERDOWN", "READONLY")
#: … and a connection that we read ourselves gives their codes.
UNAVAILABLE_CODES = (
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOPERM",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
)
#: A slot that is on its way from node to node is asked for again (TRYAGAIN); these last for longer.
_NO_HELP_ERRORS = tuple(error for error in UNAVAILABLE_ERRORS if error is not TryAgainError)
_NO_HELP_CODES = tuple(code for code in UNAVAILABLE_CODES if code != "TRYAGAIN")
#: What commands say of a key that holds something else than they work on.
_CORRUPT_CODES = (
    "WRONGTYPE",
    "ERR hash value is not",
    "ERR increment",
    "ERR value is not",
    "ERR The stream",
    "ERR The ID specified in XADD",
)
#: What says nothing against what a key holds: a group that there is not yet.
_HEALTHY_CODES = ("NOGROUP",)
#: A right that a script lacks, in the words of Redis; Valkey's begin with NOPERM.
_LACKS_A_RIGHT = "ERR ACL failure in script"
#: What a caller gave us that Redis cannot read: it is none the worse for that.
_OF_THE_CALL = ("ERR Invalid stream ID",)
#: What an error carries that ended a script of ours, its own code or a command's.
_IN_A_SCRIPT = "user_script"
#: What decoding raises of content that none of our servers has written.
UNREADABLE = (ValueError, TypeError, KeyError, IndexError, OverflowError)


def is_unknown_script(error: Exception) -> bool:
    """Whether Redis does not know the script, so that nothing was run."""
    return isinstance(error, NoScriptError) or str(error).startswith("NOSCRIPT")


def is_demoted(error: Exception) -> bool:
    """Whether the node is no primary any more."""
    return isinstance(error, _DEMOTED_ERRORS) or _code_of(str(error)) in _DEMOTED_CODES


def is_no_help(error: Exception) -> bool:
    """Whether the server answers, and cannot do what it is asked, whatever that is."""
    text = str(error)
    return (
        isinstance(error, _NO_HELP_ERRORS) or _code_of(text) in _NO_HELP_CODES or _is_unknown_error(text)
    )


def error_of(error: Exception) -> Exception:
    """What a caller is told of an error reply: StoreUnavailable where nothing was done, CorruptState of
    what is no UTF-8, ReplyLost where it is not known what was done, else the error itself."""
    # redis-py cuts the code off where it has a class for it. Each future gets an exception of its own.
    if isinstance(error, StoreUnavailable):
        return type(error)(*error.args)
    text = str(error)
    if isinstance(error, UnicodeDecodeError):  # nothing but text is written by us
        return CorruptState(text)
    is_unavailable = isinstance(error, UNAVAILABLE_ERRORS) or _code_of(text) in UNAVAILABLE_CODES
    # A script that is unknown though it was loaded: another node answers than the one that was given it.
    if is_unavailable or is_unknown_script(error) or _is_unknown_error(text):
        return StoreUnavailable(text)
    if is_corrupt(text):
        return CorruptState(text)
    return error if isinstance(error, ResponseError) else ReplyLost(str(error))


def is_corrupt(text: str) -> bool:
    """Whether an error's text says that a key holds something that a call cannot work on."""
    if _code_of(text) in (*UNAVAILABLE_CODES, *_HEALTHY_CODES):
        return False
    if text.startswith(_LACKS_A_RIGHT):
        return False
    return text.startswith(_CORRUPT_CODES) or _IN_A_SCRIPT in text


def _is_unknown_error(text: str) -> bool:
    """Whether Redis, or a proxy in front of it, refuses what we know it can do."""
    return _code_of(text) == "ERR" and not text.startswith(_OF_THE_CALL) and not is_corrupt(text)


def _code_of(text: str) -> str:
    """The code that an error begins with, to its end: BUSYGROUP is not BUSY."""
    return text.partition(" ")[0]
