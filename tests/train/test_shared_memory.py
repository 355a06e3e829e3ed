"""Sums over workers of one machine: right to the bit, call after call, and no wait for the dead."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from train import shared_memory
from train.comm import ProcessGroup
from train.shared_memory import SharedMemory, share_memory, size

CALLS = 40


def numbers(rank: int, call: int) -> Tensor:
    """Of other lengths and types from call to call; some are larger than a slot."""
    rng = np.random.default_rng((rank, call))
    drawn = rng.standard_normal(int(np.random.default_rng(call).integers(1, 200)))
    return torch.from_numpy(drawn).to(torch.float64 if call % 3 else torch.float32)


def expected(world: int, call: int) -> Tensor:
    total = numbers(0, call)
    for rank in range(1, world):
        total += numbers(rank, call)
    return total


def work(rank: int, world: int, folder: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'here'}", rank=rank, world_size=world)
    comm = ProcessGroup()
    comm.share_memory(512)
    shared = comm._memory is not None
    for call in range(CALLS):
        values = numbers(rank, call)
        assert comm.reduce(values) is values
        assert torch.equal(values, expected(world, call))
        most = comm.reduce(torch.tensor([float(rank)]), "max")
        assert most.item() == world - 1
    answers.put(shared)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_every_worker_has_the_sum_in_the_order_of_the_workers(world: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.loop", "torch.distributed"])
    answers = context.SimpleQueue()
    workers = [
        context.Process(target=work, args=(rank, world, tmp_path, answers)) for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * world
    assert [answers.get() for _ in workers] == [True] * world
    # Nothing is left, whoever is killed from here on.
    assert not list(shared_memory.FOLDER.glob("raybridge-*"))


def test_workers_on_several_machines_share_nothing() -> None:
    assert share_memory(0, 2, 1024, lambda value: [value, ("elsewhere", 1)]) is None


def test_without_room_in_memory_nothing_is_shared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert share_memory(0, 2, 1024, lambda value: [value, value]) is None
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_has_gone_is_not_waited_for(tmp_path: Path) -> None:
    gone = multiprocessing.get_context("forkserver").Process(target=os.getpid)
    gone.start()
    gone.join()
    assert gone.pid is not None
    file = tmp_path / "memory"
    file.write_bytes(bytes(size(2, 128)))
    memory = SharedMemory(0, [os.getpid(), gone.pid], file, 128)
    with pytest.raises(ConnectionError, match="worker 1 has gone"):
        memory.sum(torch.ones(3))


def test_a_worker_that_does_not_come_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "TIMEOUT_S", 0.2)
    file = tmp_path / "memory"
    file.write_bytes(bytes(size(2, 128)))
    memory = SharedMemory(0, [os.getpid(), os.getpid()], file, 128)
    with pytest.raises(ConnectionError, match="did not come within 0 s"):
        memory.sum(torch.ones(3))
