"""One function over many tasks, in this process and in others."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT

from cluster.errors import RaybridgeError
from train.data.workers import Workers


def square_here(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def square_slowly(number: int) -> tuple[int, int]:
    time.sleep(0.01)
    return square_here(number)


def kill_others(number: int) -> int:
    time.sleep(0.01)
    if multiprocessing.parent_process() is not None:
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
        for number in range(1000):
            drawn += 1
            yield number

    with Workers(2, patience_s=0.0) as workers:
        results = workers.map(square_slowly, tasks())
        seen = [next(results)]
        while seen[-1][1] == os.getpid():
            seen.append(next(results))
        assert drawn < len(seen) + 20
        squares, processes = zip(*seen, *results, strict=True)
        assert squares == tuple(number * number for number in range(1000))
        # This one worked until the others were there, and not any more.
        others = processes[len(seen) - 1 :]
        assert os.getpid() not in others
        # A second map uses the same processes.
        assert {process for _, process in workers.map(square_here, range(9))} <= set(others)


def append_later(number: int, file: str = "") -> None:
    time.sleep(0.1)
    with Path(file).open("a") as log:
        log.write(f"{number}\n")


def test_a_map_that_is_given_up_leaves_nothing_running(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    with Workers(2, patience_s=0.0) as workers:
        list(workers.map(square_slowly, range(1000)))
        results = workers.map(functools.partial(append_later, file=str(log)), range(100))
        next(results)
        results.close()
        written = log.read_text()
        time.sleep(0.5)
        assert log.read_text() == written


def test_what_a_task_raises_arrives() -> None:
    with Workers(2, patience_s=0.0) as workers, pytest.raises(OSError, match="No space left"):
        list(workers.map(fail, range(3)))


def test_a_killed_process_is_told() -> None:
    with (
        Workers(2, patience_s=0.0) as workers,
        pytest.raises(RaybridgeError, match="a decoding process was killed"),
    ):
        list(workers.map(kill_others, range(10_000)))


SLOW = """
import multiprocessing, os, time
from train.data.workers import Workers

def slow(number):
    if multiprocessing.parent_process() is not None:
        os.write(1, b"%d\\n" % os.getpid())
    time.sleep(0.2)

if __name__ == "__main__":
    with Workers(2, patience_s=0.0) as workers:
        list(workers.map(slow, range(10_000)))
"""


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, str(tmp_path / "slow.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        processes: set[int] = set()
        while len(processes) < 2:
            processes.add(int(parent.stdout.readline()))
        assert all(is_alive(process) for process in processes)
        parent.kill()
        deadline = time.monotonic() + 30
        while any(map(is_alive, processes)) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [process for process in processes if is_alive(process)]
        for process in left:
            os.kill(process, signal.SIGKILL)
    assert left == []
