"""Sockets that servers listen on."""

from __future__ import annotations

import contextlib
import socket

import pytest

from dispatcher.config import SettingsError
from dispatcher.web.listening import bind_metrics, bind_socket, kept_for_workers, listen


@pytest.mark.parametrize("setting", [None, "DISPATCHER_METRICS_ADDRESS"])
def test_of_two_that_start_at_once_one_is_refused(setting: str | None) -> None:
    with bind_socket("127.0.0.1", 0, shared=False) as first:
        port = first.getsockname()[1]
        with bind_socket("127.0.0.1", port, shared=False) as second:
            listen(first)
            with pytest.raises(SettingsError) as refused:
                listen(second, setting)
    name = setting or "DISPATCHER_PORT"
    assert str(refused.value) == f"{name}: {port} on 127.0.0.1 cannot be had: Address already in use"


def test_workers_share_a_port() -> None:
    with (
        bind_socket("127.0.0.1", 0, shared=True) as first,
        bind_socket("127.0.0.1", first.getsockname()[1], shared=True) as second,
    ):
        listen(first)
        listen(second)


@pytest.mark.parametrize("setting", [None, "DISPATCHER_METRICS_ADDRESS"])
def test_a_name_nobody_knows(setting: str | None) -> None:
    with pytest.raises(
        SettingsError, match=f"{setting or 'DISPATCHER_HOST'}: no.such.host.invalid is not"
    ):
        bind_socket("no.such.host.invalid", 0, shared=False, setting=setting)


def test_of_two_with_workers_that_start_at_once_one_is_refused() -> None:
    first = bind_socket("127.0.0.1", 0, shared=False)
    port = first.getsockname()[1]
    second = bind_socket("127.0.0.1", port, shared=False)
    with kept_for_workers(first):
        with pytest.raises(SettingsError, match="Address already in use"):
            kept_for_workers(second)
        with pytest.raises(SettingsError, match="Address already in use"):
            bind_socket("127.0.0.1", port, shared=False)


def test_one_that_bound_the_port_before_its_supervisor_kept_it_is_refused() -> None:
    first = bind_socket("127.0.0.1", 0, shared=False)
    with (
        bind_socket("127.0.0.1", first.getsockname()[1], shared=False) as second,
        kept_for_workers(first),
        pytest.raises(SettingsError, match="Address already in use"),
    ):
        listen(second)


def test_workers_listen_where_their_supervisor_keeps_the_port() -> None:
    with kept_for_workers(bind_socket("127.0.0.1", 0, shared=False)) as kept:
        host, port = kept.getsockname()
        for _ in range(2):  # others come for workers that died
            with (
                bind_socket(host, port, shared=True) as first,
                bind_socket(host, port, shared=True) as second,
            ):
                listen(first)
                listen(second)
                for _ in range(50):
                    socket.create_connection((host, port)).close()
                first.setblocking(False)
                second.setblocking(False)
                accepted = 0
                while accepted < 50:
                    for worker in (first, second):
                        with contextlib.suppress(BlockingIOError):
                            worker.accept()[0].close()
                            accepted += 1


def test_metrics_do_not_join_the_calls_of_workers() -> None:
    with (
        kept_for_workers(bind_socket("127.0.0.1", 0, shared=False)) as kept,
        pytest.raises(SettingsError, match=r"DISPATCHER_METRICS_ADDRESS: .* already in use"),
    ):
        bind_metrics(f"127.0.0.1:{kept.getsockname()[1]}", shared=False)


def test_an_address_of_metrics() -> None:
    with bind_metrics("[::1]:0", shared=False) as sock:
        assert sock.getsockname()[0] == "::1"
    with pytest.raises(SettingsError, match="DISPATCHER_METRICS_ADDRESS: a port is 65535 at most"):
        bind_metrics("127.0.0.1:65536", shared=False)
