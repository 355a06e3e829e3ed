"""First weights that are computed from training images: the whitening layer of airbench."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.dataset import ImageSplit
from train.models.airbench import AirbenchNet
from train.models.classifier import Classifier

IMAGES = 5_000
"""The first ones of the training split."""
EPS = 5e-4
"""Added to a direction's variance, so that one that is nearly constant is not blown up."""
_VALUES_AT_ONCE = 10_000_000


def initialize_from_data(net: nn.Module, classifier: Classifier, split: ImageSplit) -> None:
    """Compute the weights that a network takes from training images; most take none.

    Called once, after the network is built and before pretrained weights are loaded. The weights
    depend on the images alone: they are counted without rounding, in whatever order.

    Args:
        net: an :class:`AirbenchNet`, or any other network, which is left as it is.
        classifier: normalises the images.
        split: the training split.
    """
    if not isinstance(net, AirbenchNet):
        return
    size = net.whiten.kernel_size[0]
    count, total, products = _count_patches(split, size)
    area = size * size
    mean = classifier.mean.double().cpu().flatten().repeat_interleave(area)
    std = classifier.std.double().cpu().flatten().repeat_interleave(area)
    shift = torch.outer(total / count, mean)
    moments = products / count - shift - shift.T + torch.outer(mean, mean)
    filters = whitening_filters(moments / torch.outer(std, std))
    with torch.no_grad():
        net.whiten.weight.copy_(torch.cat([filters, -filters]).view_as(net.whiten.weight))


def whitening_filters(moments: Tensor) -> Tensor:
    """Eigenvectors over the root of their eigenvalues, the largest first (airbench94).

    Args:
        moments: float64 ``[d, d]``, mean of the products of each two entries of a patch.

    Returns:
        float64 ``[d, d]``, a filter in each row.
    """
    values, vectors = torch.linalg.eigh(moments)
    rows = vectors.T.flip(0)
    # Either sign is an eigenvector. The first entry that is not small is made positive: the largest
    # one is often no single one.
    large = rows.abs() >= rows.abs().amax(1, keepdim=True) / 2
    sign = rows.gather(1, large.int().argmax(1, keepdim=True)).sign()
    filters: Tensor = rows * sign / (values.flip(0).clamp_min(0)[:, None] + EPS).sqrt()
    return filters


def _count_patches(split: ImageSplit, size: int) -> tuple[int, Tensor, Tensor]:
    """Number of patches; float64 sums ``[d]`` of their bytes and ``[d, d]`` of the products.

    The sums are of whole numbers below 2**53, and so exact.
    """
    images = min(IMAGES, len(split))
    first = split.take(slice(0, 1))
    rows = max(1, _VALUES_AT_ONCE // (first[0].size * size * size))
    entries = first.shape[1] * size * size
    count, total = 0, torch.zeros(entries, dtype=torch.float64)
    products = torch.zeros(entries, entries, dtype=torch.float64)
    for start in range(0, images, rows):
        taken = split.take(slice(start, min(start + rows, images))).astype(np.float64)
        patches = F.unfold(torch.from_numpy(taken), size).transpose(0, 1).flatten(1)
        count += patches.shape[1]
        total += patches.sum(1)
        products += patches @ patches.T
    return count, total, products
