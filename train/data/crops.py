"""Random resized crops: the part of an image that training looks at, chosen while it is decoded."""

import functools
import math

import numpy as np
import numpy.typing as npt

from cluster.images import Box, Crop
from train.data.draws import Draws, Stream

CROP_ATTEMPTS = 10
MAX_ASPECT = 4 / 3


def random_crops(scale: float, draws: Draws) -> list[Crop]:
    """A random crop for each sample.

    Args:
        scale: smallest share of an image's area.
        draws: of the samples.
    """
    numbers = draws.uniforms(Stream.CROP, 2 * CROP_ATTEMPTS + 2)
    return [functools.partial(crop_box, scale, own) for own in numbers]


def crop_box(scale: float, draws: npt.NDArray[np.float64], width: int, height: int) -> Box:
    """Choose a part of an image as torchvision's ``RandomResizedCrop`` does.

    Its area is uniform in [scale, 1] of the image's, the logarithm of its aspect ratio uniform
    between those of 3/4 and 4/3, and its place uniform; if ten draws give none that fits, it is
    the largest middle part of an allowed aspect ratio.

    Args:
        scale: smallest share of the image's area.
        draws: ``[2 * CROP_ATTEMPTS + 2]``, uniform in [0, 1): two for the place, then an area and
            an aspect ratio for each attempt.
        width: of the image.
        height: of the image.
    """
    place_x, place_y, *attempts = draws.tolist()
    for area, aspect in zip(attempts[::2], attempts[1::2], strict=True):
        target = width * height * (scale + area * (1 - scale))
        ratio = MAX_ASPECT ** (2 * aspect - 1)
        across, down = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = math.floor(place_x * (width - across + 1))
            top = math.floor(place_y * (height - down + 1))
            return left, top, left + across, top + down
    across = min(width, max(1, round(height * MAX_ASPECT)))
    down = min(height, max(1, round(width * MAX_ASPECT)))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
