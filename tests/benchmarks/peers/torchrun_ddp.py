"""The peer: a bare DistributedDataParallel loop, as one writes it for torchrun.

    torchrun --nproc-per-node 2 torchrun_ddp.py DATASET_FOLDER EPOCHS BATCH_SIZE [--steps N]
        [--memory-format channels_last]

No Ray, no metrics, no checkpoints, no augmentation, no progress: the data set as one uint8 tensor
in memory, batches by index, the article's Net, AdamW. Rank 0 prints images/s of each epoch as JSON.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.dataset import Dataset


class Net(nn.Module):
    """The article's Net, sized for 28x28."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = torch.flatten(F.max_pool2d(x, 2), 1)
        return self.fc2(F.relu(self.fc1(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("epochs", type=int)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("--steps", type=int, help="of an epoch; by default all")
    parser.add_argument("--memory-format", default="contiguous_format")
    given = parser.parse_args()
    memory_format = getattr(torch, given.memory_format)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    split = Dataset.open(given.folder).split("train")
    images = torch.tensor(split.take(slice(None)))
    labels = torch.tensor(split.labels)
    model = nn.parallel.DistributedDataParallel(
        Net().to(memory_format=memory_format), gradient_as_bucket_view=True, static_graph=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    size = given.batch_size
    steps = given.steps or len(labels) // size
    speeds = []
    for epoch in range(given.epochs):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        dist.barrier()
        began = time.monotonic()
        for step in range(steps):
            rows = order[step * size : (step + 1) * size][rank::world]
            batch = images.index_select(0, rows).float().div_(255).sub_(0.286).div_(0.353)
            batch = batch.contiguous(memory_format=memory_format)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(batch), labels.index_select(0, rows)).backward()
            optimizer.step()
        dist.barrier()
        speeds.append(steps * size / (time.monotonic() - began))
    if rank == 0:
        print(json.dumps({"images_per_s": speeds}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
