"""First weights from a file, a bundle, the registry, or as published, fitted to other data."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cluster.bundle import WEIGHTS_FILE, Bundle, SourceFile
from cluster.dataset import DatasetMeta, file_sha256
from cluster.errors import CheckpointError, ConfigError
from cluster.registry import Registry
from train.config import TimmConfig, TorchvisionConfig, TrainConfig
from train.models.check import describe_model
from train.models.choice import absolute_path
from train.models.layers import find_first_conv, fit_channels, last_layers
from train.models.zoo import published_timm, published_torchvision, rename_published
from train.weights import StateDict, read_state_dict, weights_sha256

PUBLISHERS = ("torchvision", "timm")
REGISTRY = "registry:"
_REFERENCE = re.compile(r"(?P<model>[^@:]+)([@:](?P<which>[^@:]+))?")


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


def pin_pretrained(pretrained: str, registry: Callable[[], Registry]) -> str:
    """What names the same weights from every folder, and when an alias has moved on.

    Args:
        pretrained: as the user gives it.
        registry: connects, which is asked for only where it is needed.

    Returns:
        A publisher as it is, an absolute path, or ``registry:MODEL@VERSION``.

    Raises:
        UserError: the registry has no such model or version, or does not answer.
    """
    if pretrained in PUBLISHERS:
        return pretrained
    if pretrained.startswith(REGISTRY):
        version = registry().resolve(_reference(pretrained))
        return f"{REGISTRY}{version.name}@{version.version}"
    return str(absolute_path(Path(pretrained)))


def load_pretrained(
    net: nn.Module,
    config: TrainConfig,
    meta: DatasetMeta,
    say: Callable[[str], None] = lambda _: None,
    registry: Callable[[], Registry] | None = None,
) -> Pretrained:
    """Load ``config.pretrained`` into a network.

    The first convolution is fitted to the channels of the images, and the positions of a vision
    transformer to their size. The last layer keeps its random weights if the file's is for other
    classes, or missing.

    Args:
        net: built from ``config`` for such images.
        config: names file, bundle, model or publisher.
        meta: of the data set.
        say: told what is about to be downloaded.
        registry: connects; needed for ``registry:MODEL`` alone.

    Raises:
        CheckpointError: the file cannot be read, or its tensors are otherwise not the network's.
        BundleError: the bundle is damaged.
        ConfigError: nothing is published for the network, or it cannot be downloaded.
        UserError: the registry has no such model or version, or does not answer.
    """
    assert config.pretrained is not None
    own = net.state_dict()
    source: SourceFile | None = None
    if config.pretrained in PUBLISHERS:
        name, values = _published(config, meta, say)
    else:
        source, file = _locate(config.pretrained, registry)
        name, values = config.pretrained, read_state_dict(file, own.keys())
    if isinstance(config.model, TorchvisionConfig):
        values = _fit_positions(net, rename_published(values))
    for key in values:
        if key not in own:
            raise CheckpointError(
                f"{name} has a tensor {key}; {describe_model(config.model)} has none of that name"
            )
    loaded, fitted, random = _fit(net, values, len(meta.class_names), name)
    net.load_state_dict({**own, **loaded})
    if source is None:
        source = SourceFile(name=name, sha256=weights_sha256(net))
    return Pretrained(source, len(loaded), fitted, random)


def _locate(pretrained: str, registry: Callable[[], Registry] | None) -> tuple[SourceFile, Path]:
    """The file of weights, and what is recorded of where they come from: of a bundle its digest."""
    if pretrained.startswith(REGISTRY):
        if registry is None:
            raise ConfigError(f"pretrained={pretrained}: there is no registry to ask")
        known = registry()
        bundle = known.fetch_bundle(known.resolve(_reference(pretrained)))
        return SourceFile(name=pretrained, sha256=bundle.digest), bundle.path / WEIGHTS_FILE
    path = Path(pretrained)
    if path.is_dir():
        bundle = Bundle.open(path)
        return SourceFile(name=path.name, sha256=bundle.digest), path / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    return SourceFile(name=path.name, sha256=file_sha256(path)), path


def _reference(pretrained: str) -> str:
    """``registry:MODEL[@VERSION]`` as the registry has it: there a version follows a colon."""
    match = _REFERENCE.fullmatch(pretrained.removeprefix(REGISTRY))
    if match is None:
        raise ConfigError(
            f"pretrained={pretrained}: expected registry:MODEL, registry:MODEL@VERSION or "
            "registry:MODEL@ALIAS"
        )
    model, which = match["model"], match["which"]
    if which is None:
        return model
    return f"{model}:{which}" if which.isdecimal() else f"{model}@{which}"


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
