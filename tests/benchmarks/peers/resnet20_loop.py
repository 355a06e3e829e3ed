"""The peer: ResNet-20 on CIFAR-10 by a plain PyTorch loop, in one process.

    python resnet20_loop.py DATASET_FOLDER [--epochs 40] [--seed 0] [--threads 2] [--steps N]

The network of He et al. 2016, section 4.2 (shortcuts without weights), SGD with Nesterov momentum,
PyTorch's one-cycle schedule, batches of 128. The images lie in memory as one uint8 tensor; batches
are taken by index, mirrored and moved by up to 4 pixels at once. The memory format is the one that
is faster over some steps before the start. Standard output ends with a line of JSON: test accuracy
after the last epoch, and seconds of the training steps alone.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.dataset import Dataset, SplitName

BATCH_SIZE, TRIAL_STEPS = 128, 10
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1) * 255
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1) * 255
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Block(nn.Module):
    """Two 3x3 convolutions; the shortcut drops pixels and adds channels of zeros."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.extra = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.extra:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(y + x, inplace=True)


def resnet20() -> nn.Sequential:
    """272,474 parameters."""
    blocks: list[nn.Module] = []
    channels = 16
    for width in (16, 32, 64):
        for index in range(3):
            blocks.append(Block(channels, width, 2 if index == 0 and width > 16 else 1))
            channels = width
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of an epoch; by default all")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    data = Dataset.open(given.folder)
    images, labels = load(data, "train", "val")  # It has no use for a validation split.
    speeds = {name: trial_s(images, labels, name) for name in FORMATS}
    chosen = min(speeds, key=lambda name: speeds[name])
    print(f"seconds of {TRIAL_STEPS} steps: {speeds}", file=sys.stderr)
    net = resnet20().to(memory_format=FORMATS[chosen])
    steps = given.steps or len(labels) // BATCH_SIZE
    seconds = train(net, images, labels, given.epochs, steps, chosen)
    accuracy = evaluate(net, *load(data, "test"), chosen)
    result = {"accuracy": accuracy, "seconds": seconds, "memory_format": chosen}
    print(json.dumps({**result, "images_per_s": given.epochs * steps * BATCH_SIZE / seconds}))


def load(data: Dataset, *names: SplitName) -> tuple[Tensor, Tensor]:
    """Images and labels of splits, one after the other."""
    splits = [data.split(name) for name in names]
    return (
        torch.cat([torch.tensor(split.take(slice(None))) for split in splits]),
        torch.cat([torch.tensor(split.labels) for split in splits]),
    )


def train(
    net: nn.Module, images: Tensor, labels: Tensor, epochs: int, steps: int, form: str
) -> float:
    """The loop; how many seconds it took."""
    padded = F.pad(images, (4, 4, 4, 4))
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=epochs * steps, cycle_momentum=False
    )
    net.train()
    began = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(len(labels))
        total = torch.zeros(())
        for rows in order[: steps * BATCH_SIZE].split(BATCH_SIZE):
            batch = normalized(crop_and_flip(padded, rows), form)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(net(batch), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        elapsed = time.monotonic() - began
        print(f"epoch {epoch + 1} loss {total / steps:.4f} {elapsed:.0f} s", file=sys.stderr)
    return time.monotonic() - began


def crop_and_flip(padded: Tensor, rows: Tensor) -> Tensor:
    """uint8 ``[n, 3, 32, 32]``: each from its own place of the padded image, half mirrored."""
    count = len(rows)
    across = torch.arange(32).expand(count, 32)
    across = torch.where(torch.rand(count, 1) < 0.5, across.flip(1), across)
    x = (across + torch.randint(0, 9, (count, 1))).view(count, 1, 1, 32)
    y = (torch.arange(32) + torch.randint(0, 9, (count, 1))).view(count, 1, 32, 1)
    return padded[rows.view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1), y, x]


def normalized(images: Tensor, form: str) -> Tensor:
    """float32, in the memory format."""
    return images.float().sub_(MEAN).div_(STD).contiguous(memory_format=FORMATS[form])


def trial_s(images: Tensor, labels: Tensor, form: str) -> float:
    """Seconds of some steps in a memory format, after as many to warm up."""
    net = resnet20().to(memory_format=FORMATS[form])
    return min(train(net, images, labels, 1, TRIAL_STEPS, form) for _ in range(2))


@torch.no_grad()
def evaluate(net: nn.Module, images: Tensor, labels: Tensor, form: str) -> float:
    """Share of right answers."""
    net.eval()
    right = 0
    for some, wanted in zip(images.split(500), labels.split(500), strict=True):
        right += int((net(normalized(some, form)).argmax(1) == wanted).sum())
    return right / len(labels)


if __name__ == "__main__":
    main()
