"""RandAugment: some operations for each image, drawn anew (Cubuk et al. 2020).

Magnitudes, and which way is up, are torchvision's.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from train.config import RandAugmentConfig
from train.data import color
from train.data.draws import Draws, Stream
from train.data.geometry import Pixels, warp

Signs = npt.NDArray[np.float64]
"""float64 ``[n]``: 1 or -1, which way an operation goes."""
Maps = npt.NDArray[np.float32]
"""float32 ``[n, 2, 3]``, as :func:`train.data.geometry.warp` takes them."""

MAX_MAGNITUDE = 30
MAX_DEGREES, MAX_SHEAR, MAX_SHIFT, MAX_CHANGE = 30.0, 0.3, 150 / 331, 0.9
"""The paper's largest magnitudes; a shift is a share of the side (150 pixels of 331)."""


def rand_augment(images: Pixels, config: RandAugmentConfig, draws: Draws) -> None:
    """Apply ``config.ops`` of the operations to each image, one after the other, in place."""
    strength = config.magnitude / MAX_MAGNITUDE
    for turn in range(config.ops):
        chosen = draws.integers(Stream.OPERATION, len(OPERATIONS), turn)
        signs = np.where(draws.uniform(Stream.SIGN, turn) < 0.5, -1.0, 1.0)
        apply(images, chosen, signs, strength)


def apply(images: Pixels, operations: npt.NDArray[np.int64], signs: Signs, strength: float) -> None:
    """Apply one operation to each image, in place: those of one operation together.

    Args:
        images: are written to.
        operations: int64 ``[n]``, indices of :data:`OPERATIONS`.
        signs: which way each goes.
        strength: the magnitude as a share of the largest one.
    """
    maps = _unmoved(len(images))
    moved = operations >= len(CHANGES)
    for number, name in enumerate(OPERATIONS):
        rows = np.flatnonzero(operations == number)
        if len(rows) == 0:
            continue
        if name in CHANGES:
            images[rows] = CHANGES[name](images[rows], signs[rows], strength)
        else:
            maps[rows] = MOVES[name](signs[rows], strength, *images.shape[2:])
    if moved.any():
        images[moved] = warp(images[moved], maps[moved])


def _identity(images: Pixels, _signs: Signs, _strength: float) -> Pixels:
    return images


def _autocontrast(images: Pixels, _signs: Signs, _strength: float) -> Pixels:
    return color.autocontrast(images)


def _equalize(images: Pixels, _signs: Signs, _strength: float) -> Pixels:
    return color.equalize(images)


def _solarize(images: Pixels, _signs: Signs, strength: float) -> Pixels:
    return color.solarize(images, 255 * (1 - strength))


def _posterize(images: Pixels, _signs: Signs, strength: float) -> Pixels:
    return color.posterize(images, round(8 - 4 * strength))


def _color(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.saturation(images, 1 + MAX_CHANGE * strength * signs)


def _contrast(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.contrast(images, 1 + MAX_CHANGE * strength * signs)


def _brightness(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.brightness(images, 1 + MAX_CHANGE * strength * signs)


def _sharpness(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.sharpness(images, 1 + MAX_CHANGE * strength * signs)


def _rotate(signs: Signs, strength: float, height: int, width: int) -> Maps:
    """Counterclockwise where the sign is 1."""
    angle = math.radians(MAX_DEGREES * strength)
    cosine, sine = math.cos(angle), math.sin(angle) * signs
    maps = np.empty((len(signs), 2, 3))
    maps[:, 0, 0] = maps[:, 1, 1] = cosine
    maps[:, 0, 1], maps[:, 1, 0] = -sine, sine
    middle = (width / 2, height / 2)
    for row in range(2):
        turned = maps[:, row, 0] * middle[0] + maps[:, row, 1] * middle[1]
        maps[:, row, 2] = middle[row] - turned
    return maps.astype(np.float32)


def _shear_x(signs: Signs, strength: float, _height: int, _width: int) -> Maps:
    return _unmoved_but(0, 1, MAX_SHEAR * strength * signs)


def _shear_y(signs: Signs, strength: float, _height: int, _width: int) -> Maps:
    return _unmoved_but(1, 0, MAX_SHEAR * strength * signs)


def _translate_x(signs: Signs, strength: float, _height: int, width: int) -> Maps:
    return _unmoved_but(0, 2, -signs * int(MAX_SHIFT * strength * width))


def _translate_y(signs: Signs, strength: float, height: int, _width: int) -> Maps:
    return _unmoved_but(1, 2, -signs * int(MAX_SHIFT * strength * height))


def _unmoved(count: int) -> Maps:
    return np.tile(np.eye(2, 3, dtype=np.float32), (count, 1, 1))


def _unmoved_but(row: int, column: int, values: npt.NDArray[np.float64]) -> Maps:
    maps = _unmoved(len(values))
    maps[:, row, column] = values
    return maps


CHANGES: Mapping[str, Callable[[Pixels, Signs, float], Pixels]] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
"""Operations that change values, of images, their signs and the strength."""
MOVES: Mapping[str, Callable[[Signs, float, int, int], Maps]] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""Operations that move pixels, all of them by one map an image; of signs, the strength, the height
and the width of the images."""
OPERATIONS = (*CHANGES, *MOVES)
"""The paper's fourteen (section 3)."""
