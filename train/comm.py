"""The few exchanges between the workers of a run, and the network that they take."""

import os
from typing import Any, Literal, Protocol

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from train.config import HardwareConfig
from train.shared_memory import SharedMemory, share_memory

Reduction = Literal["sum", "max"]


class Comm(Protocol):
    """What the training loop needs of its peers. Every worker must make the same calls in order."""

    rank: int
    world: int

    def reduce(self, values: Tensor, how: Reduction = "sum") -> Tensor:
        """Overwrite a tensor with its sum or maximum over the workers, and return it."""

    def broadcast(self, values: Tensor) -> None:
        """Overwrite a tensor with worker 0's."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, in order of rank."""

    def share_memory(self, tensor_bytes: int) -> None:
        """Sum CPU tensors through shared memory from now on, where all workers have some."""

    def wrap(self, model: nn.Module, hardware: HardwareConfig) -> nn.Module:
        """The module whose backward pass averages gradients over the workers."""


class Alone:
    """One worker."""

    rank = 0
    world = 1

    def reduce(self, values: Tensor, how: Reduction = "sum") -> Tensor:  # noqa: ARG002
        """The tensor itself."""
        return values

    def broadcast(self, values: Tensor) -> None:
        """Nothing to do."""

    def gather(self, value: Any) -> list[Any]:
        """A list of the one value."""
        return [value]

    def share_memory(self, tensor_bytes: int) -> None:
        """Nothing to do."""

    def wrap(self, model: nn.Module, hardware: HardwareConfig) -> nn.Module:  # noqa: ARG002
        """The model itself."""
        return model


class ProcessGroup:
    """Workers joined by ``torch.distributed``'s default group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._memory: SharedMemory | None = None

    def reduce(self, values: Tensor, how: Reduction = "sum") -> Tensor:
        """All-reduce in place."""
        if self._memory is not None and how == "sum" and values.device.type == "cpu":
            self._memory.sum(values)
            return values
        dist.all_reduce(values, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
        return values

    def broadcast(self, values: Tensor) -> None:
        """Broadcast in place from worker 0."""
        dist.broadcast(values, src=0)

    def gather(self, value: Any) -> list[Any]:
        """All-gather a picklable value."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wrap(self, model: nn.Module, hardware: HardwareConfig) -> nn.Module:
        """DistributedDataParallel."""
        device = next(model.parameters()).device
        wrapped = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            # Running statistics are worker 0's wherever a network is evaluated or saved; to
            # exchange them in every step would change no weight.
            forward_sync_buffers=False,
            gradient_as_bucket_view=hardware.gradient_as_bucket_view,
            static_graph=hardware.static_graph,
            # A static graph knows by itself which parameters have no part in the loss.
            find_unused_parameters=not hardware.static_graph,
        )
        if hardware.compression == "bf16":
            wrapped.register_comm_hook(None, bf16_compress_hook)
        elif self._memory is not None and device.type == "cpu":
            wrapped.register_comm_hook(self, _average)
        return wrapped

    def share_memory(self, tensor_bytes: int) -> None:
        """See :mod:`train.shared_memory`."""
        if self._memory is None:
            self._memory = share_memory(self.rank, self.world, tensor_bytes, self.gather)


def _average(comm: "ProcessGroup", bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's own averaging, through :meth:`ProcessGroup.reduce`."""
    gradients = bucket.buffer().div_(comm.world)
    done = torch.futures.Future[Tensor]()
    done.set_result(comm.reduce(gradients))
    return done


def choose_comm() -> Comm:
    """The process group if one was made, else :class:`Alone`."""
    grouped = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return ProcessGroup() if grouped else Alone()


def sync_buffers(model: nn.Module, comm: Comm) -> None:
    """Give every worker worker 0's running statistics, so that all evaluate the same network."""
    if comm.world == 1:
        return
    with torch.no_grad():
        for buffer in model.buffers():
            comm.broadcast(buffer)


def take_interface(address: str) -> None:
    """Make PyTorch's process groups use the network interface that has this address.

    Left alone, gloo takes the one that the machine's own name leads to: on Debian the loopback
    interface, where other machines do not reach it. A choice of the user's stands.

    Args:
        address: by which the other workers' machines know this one.
    """
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # The name, not a prefix.
            return
