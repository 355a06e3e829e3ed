"""Where and how a run is computed."""

from typing import Literal

from pydantic import Field

from cluster.config import Frozen


class HardwareConfig(Frozen):
    """How the network is computed. What has no effect on the device is said, and left out."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of forward and backward pass, by automatic mixed precision; fp16 is for GPUs, and scales the
    loss. Slower than fp32 on CPUs without bf16 instructions."""
    tf32: bool = True
    """Let Ampere and later GPUs multiply float32 matrices with TensorFloat-32."""
    memory_format: Literal["contiguous", "channels_last", "auto"] = "contiguous"
    """``auto`` times both on the device before the first step; the run keeps the choice."""
    winograd: bool = True
    """On CPUs, 3x3 convolutions of many channels train by Winograd's algorithm: fewer
    multiplications, results up to rounding, more memory (2.25 times those layers' inputs)."""
    compile: bool = False
    """``torch.compile``; needs a C++ compiler on CPUs."""
    fused: bool = True
    """One kernel for an optimizer's whole step, where PyTorch has one."""
    sync_batchnorm: bool = False
    """Batch statistics over all workers; GPUs only."""
    activation_checkpointing: bool = False
    """Compute the activations of blocks again in the backward pass, to save memory."""
    shard_optimizer: bool = False
    """Each worker keeps a part of the optimizer's state (ZeRO-1, Rajbhandari et al. 2020)."""
    gradient_as_bucket_view: bool = True
    """Of DistributedDataParallel: gradients lie where they are exchanged from."""
    static_graph: bool = True
    """Of DistributedDataParallel: every step uses the same parameters."""
    shared_memory: bool = True
    """Workers on one machine's CPUs exchange gradients through memory that they share, not through
    the loopback network."""
    compression: Literal["none", "bf16"] = "none"
    """Type in which workers exchange gradients."""


class ExactConfig(Frozen):
    """Weights that depend on configuration and seed alone, not on the number of workers.

    Every batch is cut into logical shards. Each is computed by itself, by whichever worker, on one
    thread; the gradients are summed in fixed point, where order and grouping do not matter. Batch
    normalisation is by shard.
    """

    shards: int = Field(default=4, ge=1, le=1024)
    """Into how many parts a batch is cut; at most so many workers can share it."""


class CheckpointConfig(Frozen):
    """When the training state is saved. It is saved at the end of every epoch in any case."""

    every_s: float | None = Field(default=30.0, gt=0)
    """Also save this long after the last save, in the middle of an epoch."""
    every_steps: int | None = Field(default=None, ge=1)
    """Also save after every so many steps."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest are kept."""


class ResourcesConfig(Frozen):
    """What a run takes from the cluster."""

    workers: int = Field(default=1, ge=1)
    """Data-parallel processes."""
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with as few as these where no more are free; none: all of ``workers``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU for each worker if that many are free."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """Threads of a worker too. By default the free CPUs are shared out (one each beside a GPU)."""
    placement: Literal["pack", "spread"] = "pack"
    """``pack`` takes as few machines as possible, ``spread`` as many; as far as CPUs are free."""
    max_failures: int = Field(default=3, ge=0)
    """How often dead workers are replaced before the run is given up."""
