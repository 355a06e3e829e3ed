"""What values pixels of uint8 batches take, different for each image.

Where Pillow has the operation, this is Pillow's, to the byte, except for contrast and autocontrast,
where Pillow rounds on the way; torchvision's, which computes grey otherwise, are at most two levels
away. Sums over an image are sums of integers, so that an image's bits do not depend on the size of
its batch.
"""

import numpy as np
import numpy.typing as npt

from train.config import ColorConfig
from train.data.draws import Draws, Stream
from train.data.geometry import Pixels

Factors = npt.NDArray[np.float64]
"""float64 ``[n]``."""


def jitter(images: Pixels, config: ColorConfig, draws: Draws) -> Pixels:
    """Change brightness, contrast, saturation and hue, in this order, each by its own factor."""
    turns = 2 * draws.uniforms(Stream.COLOR, 4) - 1
    if config.brightness:
        images = brightness(images, 1 + config.brightness * turns[:, 0])
    if config.contrast:
        images = contrast(images, 1 + config.contrast * turns[:, 1])
    if config.saturation:
        images = saturation(images, 1 + config.saturation * turns[:, 2])
    if config.hue:
        images = hue(images, config.hue * turns[:, 3])
    return images


def brightness(images: Pixels, factors: Factors) -> Pixels:
    """Towards black (0) and away from it (above 1)."""
    return _blend(images, np.float32(0), factors)


def contrast(images: Pixels, factors: Factors) -> Pixels:
    """Towards the mean of the image's greys (0) and away from it (above 1)."""
    greys = grey(images)
    means = greys.sum((1, 2, 3), dtype=np.int64) / greys[0].size
    return _blend(images, means.astype(np.float32)[:, None, None, None], factors)


def saturation(images: Pixels, factors: Factors) -> Pixels:
    """Towards grey (0) and away from it (above 1); grey images stay."""
    if images.shape[1] == 1:
        return images
    return _blend(images, grey(images).astype(np.float32), factors)


def sharpness(images: Pixels, factors: Factors) -> Pixels:
    """Towards a smoothed image (0) and away from it (above 1); edges stay."""
    if min(images.shape[2:]) < 3:
        return images
    wide = images.astype(np.uint16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    # Pillow's SMOOTH: 5 in the middle, 1 around it, over 13.
    smooth = (sums + 4 * wide[:, :, 1:-1, 1:-1] + 6) // 13
    sharpened = images.copy()
    inside = images[:, :, 1:-1, 1:-1]
    sharpened[:, :, 1:-1, 1:-1] = _blend(inside, smooth.astype(np.float32), factors)
    return sharpened


def hue(images: Pixels, turns: Factors) -> Pixels:
    """Turn the colour circle by so many turns; grey images stay."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.transpose(1, 0, 2, 3).astype(np.float32)
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.where(chroma == 0, np.float32(1), chroma)
    # Sixths of the circle: 0 is red, 2 green, 4 blue.
    angle = np.where(
        value == red,
        (green - blue) / divisor,
        np.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    angle += (6 * turns.astype(np.float32))[:, None, None]
    turned = np.empty_like(images)
    # From HSV to RGB without cases: each channel falls off around its own angle.
    for channel, centre in enumerate((5, 3, 1)):
        place = angle + np.float32(centre)
        place -= 6 * np.floor(place / 6)
        fall = np.clip(np.minimum(place, 4 - place), 0, 1)
        turned[:, channel] = np.rint(value - chroma * fall)
    return turned


def autocontrast(images: Pixels) -> Pixels:
    """Stretch each channel to the whole range; a channel of one value stays."""
    lowest = images.min((2, 3), keepdims=True)
    spread = images.max((2, 3), keepdims=True) - lowest
    # A channel of one value is stretched from 0 to 255, which is where it is.
    flat = spread == 0
    lowest[flat], spread[flat] = 0, 255
    # At most 255 * 255, which fits into 16 bits.
    stretched: Pixels = ((images - lowest) * np.uint16(255) // spread).astype(np.uint8)
    return stretched


def equalize(images: Pixels) -> Pixels:
    """Give each channel an even histogram; a channel of one value stays."""
    flat = images.reshape(-1, images.shape[2] * images.shape[3])
    index = flat + np.arange(0, 256 * len(flat), 256)[:, None]
    counts = np.bincount(index.ravel(), minlength=256 * len(flat)).reshape(-1, 256)
    brightest = np.take_along_axis(counts, flat.max(1)[:, None].astype(np.int64), 1)
    step = (flat.shape[1] - brightest) // 255
    before = counts.cumsum(1) - counts
    table = np.minimum((before + step // 2) // np.maximum(step, 1), 255)
    table = np.where(step == 0, np.arange(256), table).astype(np.uint8)
    levels: Pixels = table.ravel()[index].reshape(images.shape)
    return levels


def solarize(images: Pixels, threshold: float) -> Pixels:
    """Invert what is at or above a threshold of [0, 256]."""
    # 255 - x is x with every bit turned, without a choice by np.where.
    turned = np.greater_equal(images, threshold).astype(np.uint8)
    inverted: Pixels = images ^ np.negative(turned)
    return inverted


def posterize(images: Pixels, bits: int) -> Pixels:
    """Keep so many of the upper bits."""
    kept: Pixels = images & np.uint8(256 - 2 ** (8 - bits))
    return kept


def grey(images: Pixels) -> Pixels:
    """The ITU-R 601 luma as Pillow computes it: uint8 ``[n, 1, height, width]``."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.transpose(1, 0, 2, 3).astype(np.uint32)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    greys: Pixels = luma.astype(np.uint8)[:, None]
    return greys


def _blend(
    images: Pixels, others: npt.NDArray[np.float32] | np.float32, factors: Factors
) -> Pixels:
    """``others + factor * (images - others)``, cut off at 0 and 255 and rounded down."""
    blended = images - others
    blended *= factors.astype(np.float32)[:, None, None, None]
    blended += others
    return np.clip(blended, 0, 255, out=blended).astype(np.uint8)
