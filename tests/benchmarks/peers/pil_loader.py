"""The peer: the textbook loop, a DataLoader over PIL images, for torchrun.

    torchrun --nproc-per-node 2 pil_loader.py DATASET_FOLDER EPOCHS BATCH_SIZE [--loaders N]
        [--steps N] [--memory-format channels_last]

Each image is opened, flipped, made a tensor and normalised by itself, as torchvision's own
``FashionMNIST`` does it and its tutorials show; the images are the uint8 ones in memory, as there.
Each rank has ``--loaders`` loading processes. Rank 0 prints images/s of each epoch as JSON.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from torchrun_ddp import Net
from torchvision import transforms

from cluster.dataset import Dataset


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images one by one, as ``torchvision.datasets.FashionMNIST`` gives them."""

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        transform: Callable[[Image.Image], Tensor],
    ) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("epochs", type=int)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("--loaders", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of an epoch; by default all")
    parser.add_argument("--memory-format", default="contiguous_format")
    given = parser.parse_args()
    memory_format = getattr(torch, given.memory_format)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    split = Dataset.open(given.folder).split("train")
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.286,), (0.353,)),
        ]
    )
    data = Images(np.array(split.take(slice(None)))[:, 0], np.array(split.labels), transform)
    sampler: DistributedSampler[tuple[Tensor, int]] = DistributedSampler(data)
    loader = DataLoader(
        data,
        batch_size=given.batch_size // dist.get_world_size(),
        sampler=sampler,
        num_workers=given.loaders,
        persistent_workers=given.loaders > 0,
        drop_last=True,
    )
    model = nn.parallel.DistributedDataParallel(
        Net().to(memory_format=memory_format), gradient_as_bucket_view=True, static_graph=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = given.steps or len(loader)
    speeds = []
    for epoch in range(given.epochs):
        sampler.set_epoch(epoch)
        dist.barrier()
        began = time.monotonic()
        for images, labels in itertools.islice(loader, steps):
            optimizer.zero_grad(set_to_none=True)
            batch = images.contiguous(memory_format=memory_format)
            F.cross_entropy(model(batch), labels).backward()
            optimizer.step()
        dist.barrier()
        speeds.append(steps * given.batch_size / (time.monotonic() - began))
    if dist.get_rank() == 0:
        print(json.dumps({"images_per_s": speeds}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
