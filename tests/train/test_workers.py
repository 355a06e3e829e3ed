"""One function over many tasks, in this process and in others."""

import os
import signal
from collections.abc import Iterator

import pytest

from cluster.errors import RaybridgeError
from train.data.workers import Workers


def square_here(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def kill_self(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    raise OSError(28, "No space left on device")


def test_little_work_is_done_here() -> None:
    with Workers(2) as workers:
        assert list(workers.map(square_here, range(50))) == [
            (n * n, os.getpid()) for n in range(50)
        ]


def test_more_work_is_done_by_others_in_order_and_not_ahead_of_its_reader() -> None:
    drawn = 0

    def tasks() -> Iterator[int]:
        nonlocal drawn
        for number in range(100):
            drawn += 1
            yield number

    with Workers(2, patience_s=0.0) as workers:
        results = workers.map(square_here, tasks())
        first = [next(results) for _ in range(3)]
        assert drawn < 20
        squares, processes = zip(*first, *results, strict=True)
        assert squares == tuple(number * number for number in range(100))
        assert os.getpid() not in processes
        # A second map uses the same processes.
        assert {process for _, process in workers.map(square_here, range(9))} <= set(processes)


def test_what_a_task_raises_arrives() -> None:
    with Workers(2, patience_s=0.0) as workers, pytest.raises(OSError, match="No space left"):
        list(workers.map(fail, range(3)))


def test_a_killed_process_is_told() -> None:
    with (
        Workers(2, patience_s=0.0) as workers,
        pytest.raises(RaybridgeError, match="a decoding process was killed"),
    ):
        list(workers.map(kill_self, range(100)))
