"""Which network the workers of a run take."""

import os
import socket

import psutil
import pytest

from train.comm import take_interface


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)


def test_the_interface_of_the_address_is_taken() -> None:
    loopback = next(
        name
        for name, entries in psutil.net_if_addrs().items()
        if any(one.family == socket.AF_INET and one.address == "127.0.0.1" for one in entries)
    )
    take_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == loopback
    assert os.environ["NCCL_SOCKET_IFNAME"] == f"={loopback}"


def test_what_the_user_chose_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "wg0")
    take_interface("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "wg0"


def test_an_address_that_is_not_here_decides_nothing() -> None:
    take_interface("192.0.2.1")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
