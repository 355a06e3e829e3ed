"""First weights from a file, or as published, fitted to another number of channels or classes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cluster.bundle import SourceFile
from cluster.dataset import DatasetMeta, file_sha256
from cluster.errors import CheckpointError, ConfigError
from train.config import TimmConfig, TorchvisionConfig, TrainConfig
from train.models.check import describe_model
from train.models.layers import find_first_conv, fit_channels, last_layers
from train.models.zoo import published_timm, published_torchvision, rename_published
from train.weights import StateDict, read_state_dict, weights_sha256

PUBLISHERS = ("torchvision", "timm")


@dataclass(frozen=True)
class Pretrained:
    """What was loaded."""

    source: SourceFile
    loaded: int
    """Tensors."""
    fitted: tuple[str, ...]
    """Of these, those whose shape was changed."""
    random: tuple[str, ...]
    """Tensors that keep their random values."""

    def __str__(self) -> str:
        total = self.loaded + len(self.random)
        text = f"{self.source.name}: {self.loaded} of {total} tensors loaded"
        if self.fitted:
            text += f"; fitted to the images: {', '.join(self.fitted)}"
        if self.random:
            text += f"; random: {', '.join(self.random)}"
        return text


def load_pretrained(
    net: nn.Module,
    config: TrainConfig,
    meta: DatasetMeta,
    say: Callable[[str], None] = lambda _: None,
) -> Pretrained:
    """Load ``config.pretrained`` into a network.

    The first convolution is fitted to the channels of the images, and the positions of a vision
    transformer to their size. The last layer keeps its random weights if the file's is for other
    classes, or missing.

    Args:
        net: built from ``config`` for such images.
        config: names file or publisher.
        meta: of the data set.
        say: told what is about to be downloaded.

    Raises:
        CheckpointError: the file cannot be read, or its tensors are otherwise not the network's.
        ConfigError: nothing is published for the network, or it cannot be downloaded.
    """
    assert config.pretrained is not None
    own = net.state_dict()
    if config.pretrained in PUBLISHERS:
        name, values = _published(config, meta, say)
    else:
        name, values = config.pretrained, read_state_dict(Path(config.pretrained), own.keys())
    if isinstance(config.model, TorchvisionConfig):
        values = _fit_positions(net, rename_published(values))
    for key in values:
        if key not in own:
            raise CheckpointError(
                f"{name} has a tensor {key}; {describe_model(config.model)} has none of that name"
            )
    loaded, fitted, random = _fit(net, values, len(meta.class_names), name)
    net.load_state_dict({**own, **loaded})
    published = config.pretrained in PUBLISHERS
    digest = weights_sha256(net) if published else file_sha256(Path(name))
    return Pretrained(SourceFile(name=Path(name).name, sha256=digest), len(loaded), fitted, random)


def _fit(
    net: nn.Module, values: StateDict, num_classes: int, where: str
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """The tensors that fit, the names of those that were made to, and of those that stay random."""
    first, last = find_first_conv(net), last_layers(net, num_classes)
    loaded: StateDict = {}
    fitted, random = [], []
    for name, tensor in net.state_dict().items():
        value, layer = values.get(name), name.rpartition(".")[0]
        if value is not None and value.shape == tensor.shape:
            loaded[name] = value
        elif value is None:
            if layer not in last:
                raise CheckpointError(f"{where} has no tensor {name}; it is of another model")
            random.append(name)
        elif name == f"{first}.weight" and value.ndim == 4 and len(value) == len(tensor):
            if value.shape[2:] == tensor.shape[2:]:
                loaded[name] = fit_channels(value, tensor.shape[1])
                fitted.append(name)
            else:
                random.append(name)  # A stem of another size.
        elif layer in last and value.shape[1:] == tensor.shape[1:]:
            random.append(name)
        else:
            raise CheckpointError(
                f"{where}: {name} is {tuple(value.shape)}, the model's is {tuple(tensor.shape)}; "
                "only the first and the last layer may differ: another model or image size"
            )
    return loaded, tuple(fitted), tuple(random)


def _published(
    config: TrainConfig, meta: DatasetMeta, say: Callable[[str], None]
) -> tuple[str, StateDict]:
    model, wanted = config.model, config.pretrained
    if isinstance(model, TorchvisionConfig) and wanted == "torchvision":
        return published_torchvision(model, say)
    if isinstance(model, TimmConfig) and wanted == "timm":
        return published_timm(model, meta.image.shape, len(meta.class_names))
    raise ConfigError(
        f"pretrained={wanted} has weights for models of {wanted} only, not for "
        f"{describe_model(model)}; name a file"
    )


def _fit_positions(net: nn.Module, values: StateDict) -> StateDict:
    """Interpolate the positions of torchvision's vision transformer to another image size."""
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    name = "encoder.pos_embedding"
    if not isinstance(net, VisionTransformer) or name not in values:
        return values
    if values[name].shape[1] == net.seq_length:
        return values
    return dict(interpolate_embeddings(net.image_size, net.patch_size, values))
