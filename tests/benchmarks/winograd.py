"""What Winograd's convolutions gain: a step's forward and backward pass with and without them.

    python tests/benchmarks/winograd.py [RECIPE] [--rounds 9]

RECIPE, by default `cifar10_best`, is one for CIFAR-10 that has `micro_batch_size`. One thread, as a
worker has; random images, which take as long as others.
"""

import argparse
import time

import torch
from record import Series, write_result
from torch import nn

from train.config import AirbenchConfig
from train.hardware import lay_out, set_memory_format
from train.models.airbench import AirbenchNet
from train.models.winograd import use_winograd
from train.recipes import get_recipe

DEFAULT = "cifar10_best"
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = get_recipe(given.recipe)
    model, part = config.model, config.micro_batch_size
    assert isinstance(model, AirbenchConfig)
    assert part is not None
    nets = {"PyTorch's": build(model, winograd=False), "Winograd's": build(model, winograd=True)}
    images = lay_out(torch.randint(0, 256, (part, 3, 32, 32), dtype=torch.uint8), "channels_last")
    speeds: dict[str, list[float]] = {name: [] for name in nets}
    for index in range(given.rounds + 1):
        for name in list(nets)[:: -1 if index % 2 else 1]:
            speeds[name].append(measure(nets[name], images))
    theirs, ours = (Series(name, tuple(values[1:])) for name, values in speeds.items())
    file = write_result(
        "winograd" if given.recipe == DEFAULT else f"winograd_{given.recipe}",
        title="What Winograd's convolutions gain",
        what=(
            f"Forward and backward pass of the network of `{given.recipe}`, widths "
            f"{', '.join(map(str, model.widths))}, over {part} images of 32x32 on one thread, "
            "channels_last, in turns with PyTorch's own convolutions and with "
            f"`hardware.winograd`. A value is of {STEPS} passes; a first round is left out."
        ),
        unit="images/s",
        command=f"python tests/benchmarks/winograd.py {given.recipe} --rounds {given.rounds}",
        reference=theirs,
        others=[ours],
        notes=["The machine is shared: the ratio is what counts."],
    )
    print(file.read_text("utf-8"))


def build(config: AirbenchConfig, *, winograd: bool) -> nn.Module:
    """The same network each time, in training mode."""
    torch.manual_seed(0)
    net = AirbenchNet(config, (3, 32, 32), 10)
    set_memory_format(net, "channels_last")
    if winograd and use_winograd(net) == 0:
        raise SystemExit("the network has no convolution for it")
    return net


def measure(net: nn.Module, images: torch.Tensor) -> float:
    """Images per second."""
    began = time.perf_counter()
    for _ in range(STEPS):
        net(images.float() / 255).sum().backward()
        net.zero_grad(set_to_none=True)
    return STEPS * len(images) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
