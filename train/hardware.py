"""What of the hardware options has an effect on a device, and what is chosen by timing."""

import contextlib
import copy
import shutil
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from cluster.errors import ConfigError
from train.config import HardwareConfig, TrainConfig
from train.optim.build import has_fused

MemoryFormat = Literal["contiguous", "channels_last"]

_TIMED_STEPS = 4
_COMPILERS = ("c++", "g++", "clang++")


def settle(
    config: TrainConfig, device: torch.device, world: int
) -> tuple[HardwareConfig, list[str]]:
    """The options as they take effect, and a note for each that was asked for and does not.

    Args:
        config: of the run.
        device: of a worker.
        world: number of workers.

    Raises:
        ConfigError: an option cannot be had here, and the run would not be what was asked for.
    """
    wanted, changes, notes = config.hardware, dict[str, object](), []

    def without_effect(option: str, value: object, why: str) -> None:
        changes[option] = value
        given = getattr(wanted, option)
        shown = str(given).lower() if isinstance(given, bool) else given
        notes.append(f"hardware.{option}={shown} has no effect: {why}")

    if device.type == "cpu":
        if wanted.precision == "fp16":
            without_effect("precision", "fp32", "CPUs train in fp32 or bf16")
        elif wanted.precision == "bf16" and not _has_bf16():
            notes.append(
                "hardware.precision=bf16 is slower than fp32 here: this CPU has no instructions "
                "for it"
            )
        if wanted.sync_batchnorm:
            without_effect("sync_batchnorm", False, "it is for GPUs")
        if not wanted.tf32:
            without_effect("tf32", True, "it is for GPUs")
        if wanted.compile and not any(map(shutil.which, _COMPILERS)):
            raise ConfigError(
                f"hardware.compile=true needs a C++ compiler on CPUs: none of "
                f"{', '.join(_COMPILERS)} is on the path"
            )
    if wanted.sync_batchnorm and device.type != "cpu" and world == 1:
        without_effect("sync_batchnorm", False, "there is one worker")
    for option, off in (("shard_optimizer", False), ("compression", "none")):
        if getattr(wanted, option) != off and world == 1:
            without_effect(option, off, "there is one worker")
    if not wanted.shared_memory and (device.type != "cpu" or world == 1):
        without_effect("shared_memory", True, "it is for several workers on CPUs")
    if not wanted.fused and not has_fused(config.optim):
        without_effect("fused", True, f"PyTorch has no fused {config.optim.name}")
    if not wanted.winograd and (device.type != "cpu" or wanted.compile):
        without_effect("winograd", True, "it is for CPUs, without hardware.compile")
    if wanted.compile and wanted.activation_checkpointing:
        raise ConfigError(
            "hardware.compile cannot be had with hardware.activation_checkpointing: the compiler "
            "does not take the blocks apart; choose one"
        )
    for option in ("gradient_as_bucket_view", "static_graph"):
        if not getattr(wanted, option) and (world == 1 or config.exact is not None):
            without_effect(option, True, "DistributedDataParallel is not used")
    if config.exact is not None:
        if wanted.precision == "fp16" and device.type != "cpu":
            raise ConfigError(
                "exact: fp16 scales the loss by chance; hardware.precision is fp32 or bf16"
            )
        if changes.get("compression", wanted.compression) != "none":
            without_effect("compression", "none", "an exact run exchanges every bit")
        if changes.get("sync_batchnorm", wanted.sync_batchnorm):
            without_effect("sync_batchnorm", False, "an exact run's statistics are by shard")
        if (cpus := config.resources.cpus_per_worker or 1) > 1 and device.type == "cpu":
            notes.append(
                f"resources.cpus_per_worker={cpus} has no effect but to reserve them: an exact run "
                "computes each shard on one thread"
            )
        if device.type != "cpu":
            notes.append(
                "exact: the same bits are promised on CPUs only; set resources.device=cpu for them"
            )
    return wanted.model_copy(update=changes), notes


def faster_memory_format(
    model: nn.Module,
    images: Tensor,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> MemoryFormat:
    """The memory format in which a forward and a backward pass take less time.

    Args:
        model: takes such images; left as it is.
        images: uint8 ``[n, channels, height, width]``, on the model's device.
        autocast: context of the forward pass.
    """
    formats: tuple[MemoryFormat, MemoryFormat] = ("contiguous", "channels_last")
    seconds = {one: _time_steps(model, images, one, autocast) for one in formats}
    return min(formats, key=seconds.__getitem__)


def set_memory_format(model: nn.Module, memory_format: MemoryFormat) -> None:
    """Lay out a network's weights, which decides that of what is computed with them."""
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def use_tf32(allowed: bool) -> None:
    """Let GPUs multiply float32 matrices, and convolve, with TensorFloat-32."""
    precision = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.fp32_precision = precision


def lay_out(images: Tensor, memory_format: MemoryFormat) -> Tensor:
    """A batch in a memory format; as bytes, which are the fewest to move."""
    if memory_format == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    return images


def _time_steps(
    model: nn.Module,
    images: Tensor,
    memory_format: MemoryFormat,
    autocast: Callable[[], contextlib.AbstractContextManager[object]],
) -> float:
    model = copy.deepcopy(model)  # Its running averages would move.
    set_memory_format(model, memory_format)
    batch = lay_out(images, memory_format)
    seconds = []
    for _ in range(_TIMED_STEPS):
        _wait(images.device)
        began = time.perf_counter()
        with autocast():
            loss = model(batch).sum()
        loss.backward()
        _wait(images.device)
        seconds.append(time.perf_counter() - began)
        model.zero_grad(set_to_none=True)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
