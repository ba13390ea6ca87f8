"""What the user of a Redis connection may do there: an ACL that lacks something is found at start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.live.keys import SERVER_KEYS, Keys, home_channel, keys_of

#: Asks Redis about each command without running it. Needs what the product needs anyway, which EVAL is;
#: ACL DRYRUN would need the rights of an administrator.
_ASK: Final = """
local refused = {}
for i, command in ipairs(cjson.decode(ARGV[1])) do
  local is_known, is_allowed = pcall(redis.acl_check_cmd, unpack(command))
  if not (is_known and is_allowed) then
    refused[#refused + 1] = i - 1
  end
end
return refused
"""
#: Every command that the scripts and the live wing run on a key, with what follows the key.
KEYED_COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "DEL": (), "EXISTS": (), "EXPIRE": ("1",), "GEOADD": ("1", "1", "m"),
    "GEOSEARCH": ("FROMLONLAT", "1", "1", "BYRADIUS", "1", "m", "ASC"), "GET": (), "HGET": ("f",),
    "HDEL": ("f",), "HGETALL": (), "HINCRBY": ("f", "1"), "HMGET": ("f",), "HSET": ("f", "v"),
    "LINDEX": ("0",), "LLEN": (), "LPOP": (), "LRANGE": ("0", "1"),
    "LREM": ("1", "v"), "MGET": (), "PERSIST": (), "PEXPIRE": ("1",), "PTTL": (),
    "RPUSH": ("v",), "SADD": ("m",), "SET": ("v",), "SISMEMBER": ("m",), "SMEMBERS": (), "UNLINK": (),
    "TYPE": (), "XACK": ("g", "1-1"), "XADD": ("*", "f", "v"), "XCLAIM": ("g", "c", "0", "1-1"),
    "XGROUP CREATE": ("g", "0"), "XPENDING": ("g",), "XRANGE": ("-", "+"), "XREADGROUP": (),
    "XREVRANGE": ("+", "-"), "ZADD": ("1", "m"),
    "ZCARD": (), "ZCOUNT": ("0", "1"), "ZRANGE": ("0", "1"), "ZRANGEBYSCORE": ("0", "1"),
    "ZMSCORE": ("m",), "ZRANK": ("m",), "ZREM": ("m",), "ZREMRANGEBYSCORE": ("0", "1"), "ZSCAN": ("0",),
    "ZSCORE": ("m",),
}  # fmt: skip
#: Those on a channel.
CHANNEL_COMMANDS: Final = {"SPUBLISH": ("message",), "SSUBSCRIBE": ()}
#: Those on neither.
OTHER_COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "EVALSHA": ("0" * 40, "0"), "INFO": (), "PING": (), "SCAN": ("0",), "SCRIPT LOAD": ("return 1",),
    "SUNSUBSCRIBE": (), "TIME": (),
}  # fmt: skip
#: Those that a node of a cluster is asked besides.
CLUSTER_COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "ASKING": (), "CLUSTER INFO": (), "CLUSTER SLOTS": (),
}  # fmt: skip
#: What the checks at start and the client itself run beside those.
AT_START_COMMANDS: Final = ("EVAL", "SELECT")
#: All keys of all zones, and their push channels.
KEY_PATTERN: Final = "dsp:{*}:*"
CHANNEL_PATTERNS: Final = (
    "dsp:{*}:push",
    "dsp:{*}:push:*",
    "dsp:{*}:wake",
    "dsp:{*}:changed",
    "dsp:{*}:loads",
)


def acl_rules() -> list[str]:
    """The rules of an ACL user who may do what a server does, and nothing else; without a password."""
    commands = [*KEYED_COMMANDS, *CHANNEL_COMMANDS, *OTHER_COMMANDS, *CLUSTER_COMMANDS]
    commands += AT_START_COMMANDS
    allowed = sorted(f"+{command.lower().replace(' ', '|')}" for command in commands)
    return [
        "on",
        "resetkeys",
        f"~{KEY_PATTERN}",
        "resetchannels",
        *(f"&{pattern}" for pattern in CHANNEL_PATTERNS),
        "-@all",
        *allowed,
    ]


class _Question(NamedTuple):
    """Whether `command` may be run, on `name` (a key or a channel) where it takes one."""

    command: str
    name: str
    words: tuple[str, ...]


async def find_refusals(client: Any, zones: Sequence[str], *, in_cluster: bool = False) -> list[str]:
    """What the client's user may not do of all that a server does; a few words each.

    `in_cluster` says whether the client is one of a cluster's node.
    Raises redis.exceptions.NoPermissionError where not even that may be asked.
    """
    others = OTHER_COMMANDS | (CLUSTER_COMMANDS if in_cluster else {})
    questions = list(_questions(zones, others))
    words = orjson.dumps([question.words for question in questions])
    refused = {questions[i] for i in await client.eval(_ASK, 0, words)}
    allowed_on: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        if question not in refused:
            allowed_on[question.command].add(question.name)
    # A command that is allowed somewhere is not what is missing elsewhere; one that is allowed nowhere
    # is, unless no key at all may be touched.
    any_key = any(allowed_on[command] for command in KEYED_COMMANDS)
    commands = [
        command
        for command in (*KEYED_COMMANDS, *others)
        if not allowed_on[command] and (any_key or command in others)
    ]
    names = [q.name for q in refused if q.name and (allowed_on[q.command] or not any_key)]
    channels = [channel for zone in zones for channel in _channels(keys_of(zone))]
    channels += [SERVER_KEYS.changed, SERVER_KEYS.loads, home_channel(_ID)]
    refusals = [f"run {', '.join(commands)}"] if commands else []
    if keys := sorted(_pattern(name) for name in {*names}.difference(channels)):
        refusals.append(f"use the keys {_shortened(keys)}")
    closed = [q for q in refused if q.command in CHANNEL_COMMANDS]
    if closed:
        verbs = ", ".join(sorted({q.command for q in closed}))
        channels = sorted({_pattern(q.name) for q in closed})
        refusals.append(f"use {verbs} on the channels {_shortened(channels)}")
    return refusals


def _questions(zones: Sequence[str], others: Mapping[str, tuple[str, ...]]) -> Iterator[_Question]:
    for command, more in others.items():
        yield _Question(command, "", (*command.split(" "), *more))
    for key in (SERVER_KEYS.alive, SERVER_KEYS.serves, SERVER_KEYS.list, SERVER_KEYS.zones):
        for command in ("GET", "SET"):
            yield _Question(command, key, (command, key, *KEYED_COMMANDS[command]))
    for channel in (SERVER_KEYS.changed, SERVER_KEYS.loads, home_channel(_ID)):
        yield from _channel_questions(channel)
    for i, zone in enumerate(zones):
        keys = keys_of(zone)
        for channel in _channels(keys):
            yield from _channel_questions(channel)
        # What may be done to a key is the same for the keys of all zones: two commands show it.
        for command in KEYED_COMMANDS if i == 0 else ("GET", "SET"):
            for key in _every_key(keys):
                yield _Question(command, key, _words(command, key))


def _words(command: str, key: str) -> tuple[str, ...]:
    if command == "XREADGROUP":  # the only one whose key comes last but one
        return (command, "GROUP", "g", "c", "STREAMS", key, ">")
    return (*command.split(" "), key, *KEYED_COMMANDS[command])


def _channels(keys: Keys) -> list[str]:
    return [keys.wake, keys.channel(_ID)]


def _channel_questions(channel: str) -> Iterator[_Question]:
    for command, more in CHANNEL_COMMANDS.items():
        yield _Question(command, channel, (command, channel, *more))


def _every_key(keys: Keys) -> list[str]:
    """One key of each kind; the ids are a placeholder."""
    return [
        keys.epoch, keys.loading, keys.filled, keys.holder, keys.claims, keys.seen, keys.present,
        keys.vehicles, keys.waves,
        keys.matching, keys.turned_down,
        keys.events, keys.unheard, keys.dead_letters, keys.ready,
        keys.trip(_ID), keys.driver(_ID), keys.trip_claim(_ID),
        keys.driver_claim(_ID), keys.geo(_ID), keys.offers(_ID), keys.inbox(_ID), keys.barred(_ID),
        keys.passed(_ID), keys.queue(_ID, _ID), keys.queue_look,
        keys.heat_look, keys.heat(0), keys.limit(_ID, _ID),
        keys.idem(_ID, _ID, _ID), keys.presence(_ID, _ID), keys.connections(_ID),
    ]  # fmt: skip


_ID: Final = "0"
_SHOWN: Final = 3  # enough to see what the pattern lacks


def _pattern(key: str) -> str:
    """The key for a reader: a placeholder stands for any id."""
    head, _, tail = key.replace(f"{{{_ID}}}", "{*}").partition("}:")
    parts = tail.split(":")
    return head + "}:" + ":".join("*" if part == _ID else part for part in parts)


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
