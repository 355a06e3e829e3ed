"""Activation checkpointing: blocks whose activations are computed again in the backward pass."""

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(net: nn.Module) -> int:
    """Keep of each block only its input, and compute the rest again for the gradient.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". Weights, names and results
    stay the same: random numbers are drawn again as they were, and running averages are updated
    once.

    Args:
        net: its blocks are what stands in a ``Sequential`` or ``ModuleList`` and has layers inside;
            a block inside another is left alone.

    Returns:
        Number of blocks; 0 says that the network has none, and nothing is saved.
    """
    blocks = list(_find_blocks(net, listed=False))
    for block in blocks:
        # A bound method, which a copy of the network binds to its own block.
        block.forward = MethodType(_forward, block)
    return len(blocks)


def _find_blocks(module: nn.Module, *, listed: bool) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in (nn.Sequential, nn.ModuleList):
            yield from _find_blocks(child, listed=True)
        elif listed and any(True for _ in child.children()):
            yield child
        else:
            yield from _find_blocks(child, listed=False)


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    plain = MethodType(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return plain(*args, **kwargs)  # Nothing is kept; and an export could not look inside.
    return checkpoint(
        plain,
        *args,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _scratch_buffers(block)),
        **kwargs,
    )


@contextlib.contextmanager
def _scratch_buffers(block: nn.Module) -> Iterator[None]:
    """Let a block update copies of its buffers, such as running averages, and drop them."""
    kept = [(module, dict(module._buffers)) for module in block.modules()]
    for module, buffers in kept:
        copies = {name: None if one is None else one.clone() for name, one in buffers.items()}
        module._buffers.update(copies)
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)
