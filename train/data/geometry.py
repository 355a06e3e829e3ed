"""Where pixels of uint8 batches go: flips, shifts and affine maps, different for each image.

All of it copies pixels, so nothing depends on rounding, threads or the size of a batch.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from train.data.draws import Draws, Stream

Pixels = npt.NDArray[np.uint8]
"""uint8 ``[n, channels, height, width]``."""
Padding = Literal["black", "reflect"]


def mirrored(flip: bool | Literal["alternating"], draws: Draws) -> npt.NDArray[np.bool_]:
    """Which images are mirrored: bool ``[n]``.

    ``alternating`` mirrors in epoch 0 a random half, then the other half, and so on in turn, so
    that two epochs in a row show both sides of every image (Jordan 2024, section 3.6).
    """
    if flip == "alternating":
        first = Draws(draws.seed, 0, draws.samples)
        half: npt.NDArray[np.bool_] = first.uniform(Stream.FLIP) < 0.5
        return half ^ (draws.epoch % 2 == 1)
    return draws.uniform(Stream.FLIP) < 0.5


def flip(images: Pixels, chosen: npt.NDArray[np.bool_]) -> None:
    """Mirror the chosen images left to right, in place."""
    images[chosen] = images[chosen][..., ::-1]


def shifts(limit: int, draws: Draws) -> npt.NDArray[np.int64]:
    """How far each image goes down and right: int64 ``[n, 2]``, uniform in [-limit, limit]."""
    numbers = draws.uniforms(Stream.SHIFT, 2)
    return (numbers * (2 * limit + 1)).astype(np.int64) - limit


def translate(
    images: Pixels, offsets: npt.NDArray[np.int64], limit: int, padding: Padding
) -> Pixels:
    """Shift each image.

    Args:
        images: what to shift.
        offsets: int64 ``[n, 2]``, pixels down and right, at most ``limit`` either way.
        limit: less than an image's height and width.
        padding: what comes in at the edges: black, or the image mirrored there.
    """
    mode = "reflect" if padding == "reflect" else "constant"
    padded = F.pad(torch.from_numpy(images), (limit,) * 4, mode=mode).numpy()
    # Of each padded image, one window: whole rows are copied, where a gather copies bytes.
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[2:], axis=(2, 3))
    starts = limit - offsets
    shifted: Pixels = windows[np.arange(len(images)), :, starts[:, 0], starts[:, 1]]
    return shifted


def warp(images: Pixels, matrices: npt.NDArray[np.float32]) -> Pixels:
    """Map each image by its own affine map; what comes from outside of it is black.

    A pixel takes the value of the one that its middle falls into (nearest neighbour).

    Args:
        images: what to map.
        matrices: float32 ``[n, 2, 3]``, from where a pixel goes to where it comes from, as x and y
            in pixels from the upper left corner.
    """
    count, channels, height, width = images.shape
    x = np.arange(width, dtype=np.float32) + np.float32(0.5)
    y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
    entries = matrices[..., None, None]
    # One rounding for each product and sum: the same bits however many images there are.
    from_x, from_y = (
        np.floor(entries[:, row, 0] * x + (entries[:, row, 1] * y + entries[:, row, 2]))
        for row in range(2)
    )
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    # Outside is wherever; it is made black below.
    index = np.where(inside, from_y * width + from_x, 0).astype(np.int64).reshape(count, 1, -1)
    flat = torch.from_numpy(images).flatten(2)
    taken = flat.gather(2, torch.from_numpy(index).expand(-1, channels, -1)).numpy()
    moved: Pixels = taken.reshape(images.shape) * inside[:, None]
    return moved
