"""Sockets that servers listen on."""

from __future__ import annotations

import pytest

from dispatcher.config import SettingsError
from dispatcher.web.listening import bind_socket, listen


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
