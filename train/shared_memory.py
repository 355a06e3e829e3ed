"""Sums over the workers of one machine, through memory that they share.

gloo sends every byte through the loopback network, which costs several copies in the kernel. Here a
worker writes its numbers once where the others read them. Sums are in the order of the workers, so
they are the same on all of them, and for any number of buckets.
"""

import mmap
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path("/dev/shm")
MAX_WORKERS = 8
"""With more, each reads more from memory than a ring of workers sends."""
SLOT_BYTES = 32 * 2**20
"""At most; larger tensors are summed piece by piece."""
TIMEOUT_S = 300.0
_LINE_BYTES = 64
_SPINS = 4096
_SLOTS = 2
"""Of each worker, used in turn: others may still read the last one when the next is written."""


class SharedMemory:
    """Memory of all workers of one machine; they must make the same calls in the same order.

    A worker numbers its calls. It writes its numbers, then the call's number; once all others have
    written theirs too, it reads what they wrote. Nobody waits twice: a worker writes to a slot
    again two calls later, when all others have begun the call between, and so read the slot.

    Args:
        rank: this worker.
        pids: process of each worker.
        file: at least ``size(...)`` bytes, the same for all; may be unlinked once all have it.
        slot_bytes: of each worker's slots.
    """

    def __init__(self, rank: int, pids: list[int], file: Path, slot_bytes: int) -> None:
        world = len(pids)
        self._rank = rank
        self._pids = pids
        self._call = 0
        with file.open("r+b") as opened:
            memory = mmap.mmap(opened.fileno(), size(world, slot_bytes))
        head = world * _LINE_BYTES
        # One counter a cache line, so that a worker that writes does not hold up one that reads.
        lines = np.frombuffer(memory, np.int64, head // 8).reshape(world, _LINE_BYTES // 8)
        self._counters = lines[:, 0]
        data = np.frombuffer(memory, np.uint8, _SLOTS * world * slot_bytes, head)
        self._slots = torch.from_numpy(data).view(_SLOTS, world, slot_bytes)

    def sum(self, values: Tensor) -> None:
        """Overwrite a contiguous tensor with its sum over the workers.

        Raises:
            ConnectionError: another worker has gone, or does not come.
        """
        flat = values.view(-1)
        for piece in flat.split(self._slots.shape[2] // values.element_size()):
            self._sum_piece(piece)

    def _sum_piece(self, values: Tensor) -> None:
        self._call += 1
        used = values.numel() * values.element_size()
        slots = self._slots[self._call % _SLOTS, :, :used].view(values.dtype)
        slots[self._rank].copy_(values)
        self._counters[self._rank] = self._call
        self._wait()
        torch.add(slots[0], slots[1], out=values)
        for other in slots[2:]:
            values += other

    def _wait(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            for _ in range(_SPINS):
                if self._counters.min() >= self._call:
                    return
                os.sched_yield()
            for worker, pid in enumerate(self._pids):
                if not _is_alive(pid):
                    raise ConnectionError(f"worker {worker} has gone")
            if time.monotonic() > deadline:
                raise ConnectionError(f"a worker did not come within {TIMEOUT_S:.0f} s")


def size(world: int, slot_bytes: int) -> int:
    """Bytes of the file."""
    return world * (_LINE_BYTES + _SLOTS * slot_bytes)


def share_memory(
    rank: int, world: int, tensor_bytes: int, gather: Callable[[Any], list[Any]]
) -> SharedMemory | None:
    """Memory that all workers share, or None where they are on several machines.

    Every worker must call it.

    Args:
        rank: this worker.
        world: number of workers.
        tensor_bytes: of the largest tensor that will be summed.
        gather: the values of all workers, in order of rank.
    """
    slot_bytes = min(SLOT_BYTES, -(-tensor_bytes // _LINE_BYTES) * _LINE_BYTES)
    places = gather((_machine(), os.getpid()))
    if world > MAX_WORKERS or len({place for place, _ in places}) > 1 or not _machine():
        return None
    file = _make_file(size(world, slot_bytes)) if rank == 0 else None
    file = gather(file)[0]
    if file is None:
        return None
    memory = SharedMemory(rank, [pid for _, pid in places], file, slot_bytes)
    gather(None)  # All have it open; whatever is killed now leaves no file behind.
    if rank == 0:
        file.unlink()
    return memory


def _make_file(num_bytes: int) -> Path | None:
    """A file in memory, or None where there is no room: in a container there may be 64 MiB."""
    handle, name = tempfile.mkstemp(prefix="raybridge-", dir=FOLDER)
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except OSError:
        Path(name).unlink()
        return None
    finally:
        os.close(handle)
    return Path(name)


def _machine() -> str:
    """Names what shares memory with this process; empty where that is not known to work.

    Containers, and whatever else has a network of its own, count as machines. Other processors than
    x86-64 may let a counter be seen before the numbers that were written first.
    """
    if platform.machine() != "x86_64" or not os.access(FOLDER, os.W_OK):
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        # Processes of another PID namespace could not be seen to live.
        spaces = " ".join(str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "pid"))
        return f"{boot} {spaces} {FOLDER.stat().st_dev}"
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
