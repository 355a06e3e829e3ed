"""An exponential moving average of a network's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cluster.errors import CheckpointError
from train.config import EmaConfig


class Ema:
    """The average of the weights and buffers over the steps so far.

    The decay of step t is at most ``(1 + t) / (10 + t)``, as in TensorFlow's
    ExponentialMovingAverage: a fixed one would hold on to the random beginning for 1 / (1 - decay)
    steps. Buffers such as batch statistics are averaged with the weights they belong to; counters
    are copied.

    Args:
        net: what is averaged; its values now are the first average.
        config: the decay.
    """

    def __init__(self, net: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self._net = net
        self._averages = {name: value.clone() for name, value in net.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights into the average, if this step is one of ``every``.

        Args:
            step: optimizer steps taken so far, from 1.
        """
        if step % self.config.every:
            return
        decay = min(self.config.decay, (1 + step) / (10 + step)) ** self.config.every
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, value in self._net.state_dict().items():
            if value.is_floating_point():
                averages.append(self._averages[name])
                values.append(value)
            else:
                self._averages[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the average into the network, and the trained weights back at the end."""
        own = {name: value.clone() for name, value in self._net.state_dict().items()}
        _copy(self._averages, self._net)
        try:
            yield
        finally:
            _copy(own, self._net)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by the names of the network's own ``state_dict``; not copied."""
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from averages that :meth:`state_dict` gave.

        Raises:
            CheckpointError: they are of another network.
        """
        shapes = {name: value.shape for name, value in self._averages.items()}
        if {name: value.shape for name, value in state.items()} != shapes:
            raise CheckpointError("the averaged weights are of another network than this one")
        for name, value in state.items():
            self._averages[name].copy_(value)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], net: nn.Module) -> None:
    for name, value in net.state_dict().items():
        value.copy_(source[name])
