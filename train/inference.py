"""Logits and metrics of a split, computed by all workers together.

Batches are the same for any number of workers, and their sums are added in order, so a figure does
not depend on how many computed it.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cluster.dataset import ImageSplit
from train.comm import Alone, Comm
from train.data.loader import eval_batches
from train.models.classifier import Classifier

EVAL_BATCH = 512


@torch.inference_mode()
def measure(
    classifier: Classifier, split: ImageSplit, device: torch.device, comm: Comm
) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy of a split. Every worker must call it."""
    classifier.eval()
    sums = []
    for batch in eval_batches(split, EVAL_BATCH, rank=comm.rank, world=comm.world):
        labels = batch.labels.to(device)
        logits = classifier(batch.images.to(device)).float()
        # Plain cross-entropy, as every other evaluation, whatever the training minimises.
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums.append((float(loss), int((logits.argmax(1) == labels).sum())))
    parts = [one for part in comm.gather(sums) for one in part]
    # fsum rounds once, at the end: the order in which workers come does not matter.
    return math.fsum(loss for loss, _ in parts) / len(split), sum(n for _, n in parts) / len(split)


@torch.inference_mode()
def predict(
    classifier: Classifier, split: ImageSplit, device: torch.device, comm: Comm | None = None
) -> npt.NDArray[np.float32]:
    """Logits ``[rows, classes]`` of a whole split in its own order. Every worker must call it.

    Args:
        classifier: ends in evaluation mode.
        split: which images.
        device: where the classifier is.
        comm: the peers; by default there are none.
    """
    comm = comm or Alone()
    classifier.eval()
    own = [
        classifier(batch.images.to(device)).float().cpu().numpy()
        for batch in eval_batches(split, EVAL_BATCH, rank=comm.rank, world=comm.world)
    ]
    gathered: list[list[npt.NDArray[np.float32]]] = comm.gather(own)
    count = sum(map(len, gathered))
    if count == 0:
        shape = split.take(slice(0, 0)).shape[1:]
        blank = torch.zeros((1, *shape), dtype=torch.uint8, device=device)
        return np.empty((0, len(classifier(blank)[0])), np.float32)
    return np.concatenate([gathered[at % comm.world][at // comm.world] for at in range(count)])
