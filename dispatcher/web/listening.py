"""Sockets that servers listen on; an address that cannot be had is refused by the setting's name."""

from __future__ import annotations

import socket
from typing import Final

from dispatcher.config import SettingsError

#: Connections that may wait to be accepted.
BACKLOG: Final = 2048
#: The setting of the address that metrics have of their own.
METRICS: Final = "DISPATCHER_METRICS_ADDRESS"


def bind_socket(host: str, port: int, *, shared: bool, setting: str | None = None) -> socket.socket:
    """A bound socket that does not listen yet; `shared` lets other sockets of this user join.

    `setting` is the one that gives the address, where it is not DISPATCHER_HOST and DISPATCHER_PORT.

    Raises SettingsError if the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        name = setting or "DISPATCHER_HOST"
        raise SettingsError(f"{name}: {host} is not an address: {error}") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _not_to_be_had(host, port, setting, error) from None
    return sock


def bind_metrics(address: str, *, shared: bool) -> socket.socket:
    """The same for DISPATCHER_METRICS_ADDRESS, a host and a port."""
    host, _, port = address.rpartition(":")
    if int(port) > 65_535:
        raise SettingsError(f"{METRICS}: a port is 65535 at most")
    return bind_socket(host.strip("[]"), int(port), shared=shared, setting=METRICS)


def kept_for_workers(sock: socket.socket, setting: str | None = None) -> socket.socket:
    """In place of a bound socket, one that never listens, and keeps the address for workers: they listen
    with shared sockets of their own.

    Raises SettingsError if another process was faster.
    """
    # Two may bind one address as long as neither listens: who does is alone, and lets no other bind it,
    # except for sockets of this user that are shared, as the one that is kept and the workers' are.
    with sock:
        listen(sock, setting)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        host, port = sock.getsockname()[:2]
        kept = bind_socket(host, port, shared=True, setting=setting)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # nor binds anybody else from now on
    return kept


def listen(sock: socket.socket, setting: str | None = None) -> None:
    """Lets connections come to a bound socket.

    It is done before the socket is given to the event loop, since uvloop says nothing where it fails: a
    server that bound the same address at the same time, and listens already, would get all connections.

    Raises SettingsError if another process was faster.
    """
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise _not_to_be_had(host, port, setting, error) from None


def _not_to_be_had(host: str, port: int, setting: str | None, error: OSError) -> SettingsError:
    name, reason = setting or "DISPATCHER_PORT", error.strerror or str(error)
    return SettingsError(f"{name}: {port} on {host} cannot be had: {reason}")
