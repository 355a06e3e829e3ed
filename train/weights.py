"""Weights in files: a network's own, and those that other people's code wrote.

Read without unpickling code: a file that would need it is refused, and the message says what to
save instead.
"""

import hashlib
import os
import re
import secrets
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cluster.errors import CheckpointError

StateDict = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the weights beside other things."""
_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of every name."""


def save_state_dict(net: nn.Module, path: Path) -> None:
    """Write a plain ``state_dict``, as ``torch.save(net.state_dict(), path)`` does, atomically."""
    save_atomic({name: tensor.cpu() for name, tensor in net.state_dict().items()}, path)


def load_state_dict(net: nn.Module, path: Path) -> None:
    """Load a file of weights (see :func:`read_state_dict`) into a network of the same tensors.

    Raises:
        CheckpointError: the file is missing, damaged, or not of weights alone, or its tensors are
            not those of the network.
    """
    values = read_state_dict(path, net.state_dict().keys())
    check_state_dict(net, values, str(path))
    net.load_state_dict(values)


def read_state_dict(path: Path, names: Collection[str]) -> StateDict:
    """Read named tensors from a ``state_dict`` (.pth, .pt) or a safetensors file.

    A wrapper such as ``{"state_dict": ..., "epoch": ...}``, and what DistributedDataParallel and
    ``torch.compile`` put in front of every name, are taken off.

    Args:
        path: of the file.
        names: those of the network's tensors; they tell what is no prefix but part of a name.

    Raises:
        CheckpointError: the file is missing or damaged, or holds something else than tensors.
    """
    if path.suffix.lower() == ".safetensors":
        try:
            values: Any = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
    else:
        _refuse_programs(path)
        values = load_weights_only(path)
    if isinstance(values, dict):
        inner = [values[key] for key in _WRAPPERS if isinstance(values.get(key), dict)]
        values = inner[0] if inner else values
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise CheckpointError(f"{path} does not hold a state_dict of named tensors")
    return _unwrap(dict(values), names)


def check_state_dict(net: nn.Module, values: StateDict, where: str) -> None:
    """Compare names and shapes with the network's.

    Raises:
        CheckpointError: names the first tensor that does not fit.
    """
    own = net.state_dict()
    for name, tensor in own.items():
        if name not in values:
            raise CheckpointError(f"{where} has no tensor {name}; it is of another model")
        if values[name].shape != tensor.shape:
            raise CheckpointError(
                f"{where}: {name} is {tuple(values[name].shape)}, "
                f"the model's is {tuple(tensor.shape)}; another model or image size"
            )
    for name in values:
        if name not in own:
            raise CheckpointError(f"{where} has a tensor {name}; the model has none of that name")


def weights_sha256(net: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a network's tensors, in order."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        # As bytes: numpy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_atomic(values: Any, path: Path) -> None:
    """``torch.save`` to a file that is seen whole or not at all."""
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}.draft"
    try:
        with draft.open("wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def load_weights_only(path: Path) -> Any:
    """``torch.load`` of tensors, numbers, strings and containers of them.

    Raises:
        CheckpointError: the file is missing or damaged, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # noqa: BLE001 - a damaged file raises many kinds in torch.load
        text = str(error).strip()
        foreign = re.search(r"GLOBAL ([\w.]+)", text)
        if foreign:
            raise CheckpointError(
                f"{path} holds more than weights ({foreign[1]}), and reading that would run code; "
                "where it was made, save the weights alone: "
                "torch.save(model.state_dict(), 'model.pth')"
            ) from None
        reason = text.splitlines()[0] if text else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as weights: {reason[:200]}") from None


def _unwrap(tensors: StateDict, names: Collection[str]) -> StateDict:
    """Take off as many prefixes, in whatever order they are, as let most names be known."""
    forms = [tensors]
    while prefix := _shared_prefix(forms[-1]):
        forms.append({name.removeprefix(prefix): tensor for name, tensor in forms[-1].items()})
    return max(forms, key=lambda form: sum(name in names for name in form))


def _shared_prefix(tensors: StateDict) -> str | None:
    if not tensors:
        return None
    return next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)


def _refuse_programs(path: Path) -> None:
    """Tell TorchScript and exported programs apart from weights: all three are zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return  # Missing, damaged, or in torch's old format: what follows says it better.
    kinds = {
        "constants.pkl": "a TorchScript program",
        "serialized_exported_program.json": "an exported program",
        "archive_format": "an exported program",
    }
    for ending, kind in kinds.items():
        if any(name.rpartition("/")[2] == ending for name in names):
            raise CheckpointError(
                f"{path} is {kind}, not weights; save them where it was made: "
                "torch.save(model.state_dict(), 'model.pth'), or the graph: torch.onnx.export"
            )
