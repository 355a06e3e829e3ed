"""What a worker trains with, put together from the configuration."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cluster.dataset import Dataset, DatasetMeta
from train.comm import Comm
from train.config import GdConfig, TrainConfig
from train.data.augment import without_effect
from train.data.loader import TrainLoader
from train.exact import Exact
from train.gradients import Averaged, Gradients
from train.hardware import faster_memory_format, set_memory_format, settle, use_tf32
from train.losses import Loss, build_loss
from train.models.classifier import Classifier, build_classifier
from train.models.recomputing import checkpoint_activations
from train.models.scaling import base_model
from train.models.whitening import initialize_from_data
from train.models.winograd import use_winograd
from train.optim.build import optimizer_parts
from train.state import TrainingState

_TRIED_IMAGES = 2


@dataclass
class Setup:
    """Everything that stays the same while a run trains, and the state that does not."""

    config: TrainConfig
    """Its hardware options as they take effect."""
    state: TrainingState
    loader: TrainLoader
    batch_size: int
    """Images of a step, over all workers."""
    parts: Sequence[int]
    """Which parts of each batch are this worker's."""
    num_parts: int
    """Of all workers."""
    shares: int
    """Of a batch: one a worker or, in an exact run, logical shards."""
    loss: Loss
    model: nn.Module
    """The classifier, as it is computed: compiled, if that was asked for."""
    autocast: Callable[[], contextlib.AbstractContextManager[object]]
    sharded: bool
    """Whether each worker has a part of the optimizer's state only."""
    device: torch.device
    notes: list[str]


def set_up(config: TrainConfig, dataset: Dataset, comm: Comm, device: torch.device) -> Setup:
    """Build network, optimizer, loss and loader.

    Raises:
        ConfigError: a part of the configuration does not fit the data set or the device.
    """
    hardware, notes = settle(config, device, comm.world)
    notes += without_effect(config.augment, dataset.meta.image.channels)
    config = config.model_copy(update={"hardware": hardware})
    train = dataset.split("train")
    classifier = build_classifier(config, dataset.meta)
    initialize_from_data(classifier.net, classifier, train)
    classifier.to(device)
    if device.type == "cuda":
        use_tf32(hardware.tf32)
    if hardware.sync_batchnorm:
        classifier = nn.SyncBatchNorm.convert_sync_batchnorm(classifier)
    if hardware.activation_checkpointing and checkpoint_activations(classifier.net) == 0:
        notes.append("hardware.activation_checkpointing=true has no effect: no blocks were found")
    if hardware.winograd and device.type == "cpu" and not hardware.compile:
        use_winograd(classifier.net)
    sharded = hardware.shard_optimizer
    if sharded and config.checkpoint.every_s is not None and not config.checkpoint.every_steps:
        notes.append(
            "checkpoint.every_s has no effect with hardware.shard_optimizer, where all workers "
            "take part in a checkpoint; set checkpoint.every_steps"
        )
    # Gradient descent takes the whole split in a step.
    batch_size = len(train) if isinstance(config.optim, GdConfig) else config.batch_size
    shares, each = split_batch(config, batch_size, comm.world)
    # Parts of a share one after the other: those of share s are s, s + shares, s + 2 * shares, ...
    own = range(comm.rank, shares, comm.world)
    parts = [share + shares * index for share in own for index in range(each)]
    model: Any = torch.compile(classifier) if hardware.compile else classifier
    counts = np.bincount(train.labels, minlength=len(dataset.meta.class_names))
    if config.sampling == "balanced":
        counts = np.minimum(counts, 1)  # Each class that there is comes equally often.
    return Setup(
        config=config,
        state=TrainingState(
            config, classifier, _optimizer_maker(config, classifier, dataset.meta), device
        ),
        loader=TrainLoader(
            train,
            batch_size,
            config.augment,
            sampling=config.sampling,
            seed=config.seed,
            parts=parts,
            num_parts=shares * each,
        ),
        batch_size=batch_size,
        parts=parts,
        num_parts=shares * each,
        shares=shares,
        loss=build_loss(config.loss, counts.tolist()),
        model=model,
        autocast=_autocast(config, device),
        sharded=sharded,
        device=device,
        notes=notes,
    )


def split_batch(config: TrainConfig, images: int, world: int) -> tuple[int, int]:
    """How a batch is cut: into shares, and each share into parts that are computed at once.

    Args:
        config: of the run.
        images: of a batch.
        world: number of workers.

    Returns:
        Shares, one for each worker or, in an exact run, for each logical shard; parts of each.
    """
    shares = world if config.exact is None else config.exact.shards
    micro = config.micro_batch_size
    if isinstance(config.optim, GdConfig):  # Its batch is the whole split.
        micro = min(micro or config.batch_size, config.batch_size)
    if micro is None:
        return shares, 1
    # No part may be empty, however the images fall.
    return shares, max(1, min(math.ceil(math.ceil(images / shares) / micro), images // shares))


def prepare_memory(setup: Setup, comm: Comm) -> None:
    """Lay out the weights, and give every worker worker 0's.

    A format that is chosen by timing is worker 0's choice, and stays that of the run.
    """
    state = setup.state
    wanted = setup.config.hardware.memory_format
    if state.memory_format is None and wanted != "auto":
        state.memory_format = wanted
    elif state.memory_format is None:
        chosen = None
        if comm.rank == 0:
            images = next(setup.loader.epoch(0)).images.to(setup.device)
            chosen = faster_memory_format(state.classifier, images, setup.autocast)
        state.memory_format = comm.gather(chosen)[0]
        setup.notes.append(f"hardware.memory_format=auto: {state.memory_format} is faster")
    assert state.memory_format is not None
    set_memory_format(state.classifier, state.memory_format)
    with torch.no_grad():
        for tensor in state.classifier.net.state_dict().values():
            comm.broadcast(tensor)


def choose_gradients(setup: Setup, comm: Comm) -> Gradients:
    """How the workers share a batch."""
    if setup.config.hardware.shared_memory and setup.device.type == "cpu":
        # An exact run sums in float64.
        width = 4 if setup.config.exact is None else 8
        parameters = setup.state.classifier.parameters()
        comm.share_memory(width * sum(parameter.numel() for parameter in parameters))
    if setup.config.exact is not None:
        net = setup.state.classifier.net
        each = setup.num_parts // setup.shares
        return Exact(net, setup.model, comm, setup.parts, setup.shares, each)
    images = next(setup.loader.epoch(0)).images[:_TRIED_IMAGES].to(setup.device)
    return Averaged(setup.model, comm, setup.config.hardware, setup.parts, images)


def _optimizer_maker(
    config: TrainConfig, classifier: Classifier, meta: DatasetMeta
) -> Callable[[], torch.optim.Optimizer]:
    base = None
    if config.lr_scale == "width" and (narrow := base_model(config.model)) is not None:
        base = build_classifier(config.model_copy(update={"model": narrow}), meta).net
    parts = optimizer_parts(config, classifier.net, base=base)

    def make() -> torch.optim.Optimizer:
        if config.hardware.shard_optimizer:
            # FSDP and sympy come with it, which every worker would load at its start.
            from torch.distributed.optim import ZeroRedundancyOptimizer

            return ZeroRedundancyOptimizer(parts.groups, parts.kind, **parts.settings)
        return parts.kind(parts.groups, **parts.settings)

    return make


def _autocast(
    config: TrainConfig, device: torch.device
) -> Callable[[], contextlib.AbstractContextManager[object]]:
    precision = config.hardware.precision
    if precision == "fp32":
        return contextlib.nullcontext
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype)
