"""What a command connects to, decided without starting anything."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import NotFoundError, UserError
from cluster.session import connect, find_address
from cluster.settings import Settings


@pytest.fixture(autouse=True)
def _nothing_running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of something that listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def record(folder: Path, address: str) -> None:
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(address)


def test_nothing_is_found_where_nothing_runs() -> None:
    assert find_address() is None


def test_a_cluster_of_this_machine_is_found(tmp_path: Path, listening: str) -> None:
    record(tmp_path, listening)
    assert find_address() == listening


def test_a_cluster_that_was_killed_is_not_found(tmp_path: Path) -> None:
    record(tmp_path, "127.0.0.1:9")
    assert find_address() is None


def test_the_named_cluster_comes_first(
    tmp_path: Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, "127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", listening)
    assert find_address() == listening


def test_local_means_a_private_one(
    tmp_path: Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, listening)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert find_address() is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "RAY_ADDRESS=127.0.0.1:9: nothing answers there; unset it, or start"),
        ("nonsense", "nothing answers there"),
        ("http://127.0.0.1:8265", "expected HOST:PORT .*python -m cluster submit"),
        ("ray://127.0.0.1:10001", "expected HOST:PORT"),
    ],
)
def test_a_name_that_cannot_be_used(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=message):
        find_address()


def test_no_cluster_and_none_may_be_started(settings: Settings) -> None:
    with (
        pytest.raises(NotFoundError, match=r"python -m cluster up.* or .*ray start --head"),
        connect(settings, may_start=False),
    ):
        pass
