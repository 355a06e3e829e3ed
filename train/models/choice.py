"""What ``--model`` means: a network by the shortest name that says which."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from train.models.zoo import torchvision_names, unknown_name

BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "net": {"name": "net"},
    "resnet": {"name": "resnet"},
    # As published for 32x32 (He et al. 2016, table 6).
    "resnet20": {"name": "resnet", "width": 16, "blocks": [3, 3, 3], "shortcut": "pad"},
    "resnet56": {"name": "resnet", "width": 16, "blocks": [9, 9, 9], "shortcut": "pad"},
    "airbench": {"name": "airbench"},
}
_FORMS = "NAME of torchvision, timm:NAME, or FILE.py:FACTORY"


def parse_model(text: str) -> dict[str, Any]:
    """Turn ``--model`` into fields of ``model``.

    ``net``, ``resnet``, ``resnet20``, ``resnet56``, ``airbench``; ``resnet18`` or
    ``torchvision:resnet18``; ``timm:NAME``; ``my_net.py:build``; ``graph.onnx``.

    Raises:
        ConfigError: there is no such network, or the text is of none of these forms.
    """
    kind, colon, rest = text.rpartition(":")
    if text in BUILT_IN:
        return dict(BUILT_IN[text])
    if kind.endswith(".py") and rest.isidentifier():
        return {"name": "file", "path": kind, "factory": rest}
    if text.endswith((".py", ".py:")):
        raise ConfigError(
            f"--model {text}: name the function or class too: {text.rstrip(':')}:FACTORY"
        )
    if text.lower().endswith(".onnx"):
        return {"name": "onnx", "path": text}
    if kind == "timm" and rest:
        return {"name": "timm", "arch": rest}
    if colon and kind != "torchvision":
        raise ConfigError(f"--model {text}: expected {', '.join(BUILT_IN)}, {_FORMS}")
    if rest not in torchvision_names():
        problem = f"no model {text!r}: expected {', '.join(BUILT_IN)}, {_FORMS}"
        raise ConfigError(unknown_name(problem, rest, [*BUILT_IN, *torchvision_names()]))
    return {"name": "torchvision", "arch": rest}


def choose_model(text: str, changes: object) -> dict[str, Any]:
    """Fields of ``model`` from ``--model`` and, over them, those of ``--set model...``.

    Raises:
        ConfigError: as :func:`parse_model`, or ``--set model=...`` names a second network.
    """
    if not isinstance(changes, Mapping):
        raise ConfigError(f"--set model={changes}: the network is named by --model {text}")
    return {**parse_model(text), **changes}


def absolute_path(path: Path) -> Path:
    """The path that means the same from every folder."""
    return path.expanduser().absolute()
