"""One function over many tasks, in this process and in others."""

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


SLOW = """
import os, time
from train.data.workers import Workers

def slow(number):
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
