"""Networks of torchvision and timm by name, their first and last layers fitted to the data."""

import contextlib
import difflib
import io
import re
import types
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.errors import ConfigError
from train.config import TimmConfig, TorchvisionConfig
from train.models.layers import find_first_conv, fit_channels

_CHANNELS = 3
"""What torchvision's first layers take."""
_OWN_ARGUMENTS = {"weights", "progress", "num_classes"}
"""Arguments of torchvision's builders that are not the user's to give."""


@cache
def torchvision_names() -> tuple[str, ...]:
    """Every classifier that torchvision builds by name."""
    import torchvision.models

    return tuple(torchvision.models.list_models(module=torchvision.models))


def build_torchvision(
    config: TorchvisionConfig, shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Build a classifier of torchvision with random weights.

    Raises:
        ConfigError: there is none of that name, an option is unknown, or such images do not fit.
    """
    import torchvision.models
    from torchvision.models.resnet import ResNet

    where = f"model.arch={config.arch}"
    if config.arch not in torchvision_names():
        problem = f"torchvision has no classifier {config.arch!r}"
        raise ConfigError(unknown_name(problem, config.arch, torchvision_names()))
    options = _size_options(config, shape)
    options |= _torchvision_options(config, where)
    try:
        net: nn.Module = torchvision.models.get_model(
            config.arch, weights=None, num_classes=num_classes, **options
        )
    except Exception as error:  # noqa: BLE001 - options reach any depth of torchvision's code
        raise ConfigError(f"{where} with {_listed(options)}: {_one_line(error)}") from None
    if shape[0] != _CHANNELS:
        _replace_first(net, shape[0])
    if config.stem == "small":
        if not isinstance(net, ResNet):
            raise ConfigError(f"model.stem=small is for ResNets and their kin, not {config.arch}")
        _shrink_stem(net)
    return net


def build_timm(config: TimmConfig, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build a classifier of timm with random weights.

    Raises:
        ConfigError: timm is not installed, or there is none of that name, or an option or the
            images do not fit.
    """
    return _create_timm(config, shape, num_classes, pretrained=False)


def published_torchvision(
    config: TorchvisionConfig, say: Callable[[str], None]
) -> tuple[str, dict[str, Tensor]]:
    """Download the weights that torchvision recommends for a network, once.

    Args:
        config: names the network.
        say: told the address, if they are not here already.

    Returns:
        Their name, and the tensors.

    Raises:
        ConfigError: they cannot be downloaded.
    """
    import torchvision.models

    weights = torchvision.models.get_model_weights(config.arch).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    here = file.is_file()
    if not here:
        say(f"downloading {weights.url}")
    try:
        # It tells by itself, on standard output, which is not its to write to.
        with contextlib.redirect_stdout(io.StringIO()):
            tensors = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch.hub, and torch.load, raise what they like
        problem = (
            f"{file} is damaged ({_one_line(error)}); remove it, or"
            if here
            else f"{weights.url} cannot be downloaded ({_one_line(error)});"
        )
        raise ConfigError(
            f"pretrained=torchvision: {problem} fetch it elsewhere and name the file: "
            "--pretrained FILE"
        ) from None
    return str(weights), dict(tensors)


def published_timm(
    config: TimmConfig, shape: tuple[int, int, int], num_classes: int
) -> tuple[str, dict[str, Tensor]]:
    """Download the weights of a timm network, once, fitted to the data by timm itself.

    Returns:
        Their name, and the tensors, of which those of the last layer are random.

    Raises:
        ConfigError: they cannot be downloaded.
    """
    net = _create_timm(config, shape, num_classes, pretrained=True)
    return f"timm:{config.arch}", dict(net.state_dict())


def rename_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as networks have them now, for files that torchvision published under older ones.

    DenseNet's layers were numbered otherwise. The auxiliary classifiers of GoogLeNet and Inception
    are left out, as these networks are built without them.
    """
    old = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")
    auxiliary = ("AuxLogits.", "aux1.", "aux2.")
    return {
        old.sub(r"\1\2", name): tensor
        for name, tensor in tensors.items()
        if not name.startswith(auxiliary)
    }


def smallest_image(config: TorchvisionConfig | TimmConfig) -> tuple[int, int] | None:
    """Height and width below which a network is known to fail, or None."""
    import torchvision.models

    if not isinstance(config, TorchvisionConfig):
        return None
    known = torchvision.models.get_model_weights(config.arch).DEFAULT.meta.get("min_size")
    return None if known is None else (known[0], known[1])


def unknown_name(problem: str, name: str, known: Iterable[str]) -> str:
    """A message that ends with the names that come near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"{problem}; near it are: {', '.join(near)}" if near else problem


def _torchvision_options(config: TorchvisionConfig, where: str) -> dict[str, Any]:
    taken = _OWN_ARGUMENTS & config.options.keys()
    if taken:
        raise ConfigError(f"{where}: model.options.{sorted(taken)[0]} is decided by the data")
    options = dict(config.options)
    if config.arch in ("googlenet", "inception_v3"):
        # Their auxiliary classifiers would make the output a tuple in training; the initial values
        # of older versions take half a minute; their own change of pixels is that of ImageNet.
        options = {"aux_logits": False, "init_weights": True, "transform_input": False} | options
        if options["aux_logits"]:
            raise ConfigError(f"{where}: model.options.aux_logits=true is not supported")
    return options


def _size_options(config: TorchvisionConfig, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What vision transformers must know of the image beforehand."""
    _, height, width = shape
    size = f"model.arch={config.arch} takes square images of a multiple of"
    if config.arch.startswith("vit_"):
        patch = int(config.arch.rpartition("_")[2])
        if height != width or height % patch:
            raise ConfigError(f"{size} {patch} pixels; these are {height}x{width}")
        return {"image_size": height}
    if config.arch.startswith("maxvit_"):
        # Four halvings down to windows of 7x7 pixels, which must fit at each level.
        if height != width or height % 224:
            raise ConfigError(f"{size} 224 pixels; these are {height}x{width}")
        return {"input_size": (height, width)}
    return {}


def _replace_first(net: nn.Module, channels: int) -> None:
    name = find_first_conv(net)
    assert name is not None
    conv = net.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    fitted = nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    with torch.no_grad():
        fitted.weight.copy_(fit_channels(conv.weight, channels))
        if conv.bias is not None and fitted.bias is not None:
            fitted.bias.copy_(conv.bias)
    net.set_submodule(name, fitted)


def _shrink_stem(net: Any) -> None:
    old = net.conv1
    net.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()


def _create_timm(
    config: TimmConfig, shape: tuple[int, int, int], num_classes: int, *, pretrained: bool
) -> nn.Module:
    timm = _import_timm()
    where = f"model.arch={config.arch}"
    if not timm.is_model(config.arch):
        raise ConfigError(
            unknown_name(f"timm has no model {config.arch!r}", config.arch, timm.list_models())
        )
    taken = {"pretrained", "num_classes", "in_chans"} & config.options.keys()
    if taken:
        raise ConfigError(f"{where}: model.options.{sorted(taken)[0]} is decided by the data")
    options = _timm_size(timm, config, shape) | config.options
    try:
        net: nn.Module = timm.create_model(
            config.arch,
            pretrained=pretrained,
            num_classes=num_classes,
            in_chans=shape[0],
            **options,
        )
    except Exception as error:  # noqa: BLE001 - networks, and its hub, raise what they like
        if pretrained:
            raise ConfigError(
                f"pretrained=timm: weights of {config.arch} cannot be had ({_one_line(error)}); "
                "fetch them elsewhere and name the file: --pretrained FILE"
            ) from None
        raise ConfigError(f"{where} with {_listed(options)}: {_one_line(error)}") from None
    return net


def _timm_size(
    timm: types.ModuleType, config: TimmConfig, shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The image's size, for networks that must know it: those with a fixed input size."""
    defaults = timm.get_pretrained_cfg(config.arch)
    if defaults is None or not defaults.fixed_input_size:
        return {}
    return {"img_size": shape[1:]}


def _import_timm() -> types.ModuleType:
    try:
        import timm
    except ImportError:
        raise ConfigError("timm is not installed; pip install 'raybridge[timm]'") from None
    return timm


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "no options"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
