"""RandAugment: some operations for each image, drawn anew (Cubuk et al. 2020)."""

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
Operation = Callable[[Pixels, Signs, float], Pixels]
"""Of images, their signs, and the magnitude as a share of the largest one."""

MAX_MAGNITUDE = 30
MAX_DEGREES, MAX_SHEAR, MAX_SHIFT, MAX_CHANGE = 30.0, 0.3, 150 / 331, 0.9
"""The paper's largest magnitudes; a shift is a share of the side (150 pixels of 331)."""


def rand_augment(images: Pixels, config: RandAugmentConfig, draws: Draws) -> None:
    """Apply ``config.ops`` of the operations to each image, one after the other, in place."""
    strength = config.magnitude / MAX_MAGNITUDE
    for turn in range(config.ops):
        chosen = draws.integers(Stream.OPERATION, len(OPERATIONS), turn)
        signs = np.where(draws.uniform(Stream.SIGN, turn) < 0.5, -1.0, 1.0)
        for number, operation in enumerate(OPERATIONS.values()):
            rows = np.flatnonzero(chosen == number)
            if len(rows):
                images[rows] = operation(images[rows], signs[rows], strength)


def _identity(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return images


def _autocontrast(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.autocontrast(images)


def _equalize(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.equalize(images)


def _rotate(images: Pixels, signs: Signs, strength: float) -> Pixels:
    """Counterclockwise where the sign is 1."""
    angle = math.radians(MAX_DEGREES * strength)
    height, width = images.shape[2:]
    cosine, sine = math.cos(angle), math.sin(angle) * signs
    matrices = np.empty((len(images), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = cosine
    matrices[:, 0, 1], matrices[:, 1, 0] = -sine, sine
    middle = np.array([width / 2, height / 2])
    matrices[:, :, 2] = middle - matrices[:, :, :2] @ middle
    return warp(images, matrices.astype(np.float32))


def _solarize(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.solarize(images, 255 * (1 - strength))


def _posterize(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.posterize(images, round(8 - 4 * strength))


def _color(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.saturation(images, 1 + MAX_CHANGE * strength * signs)


def _contrast(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.contrast(images, 1 + MAX_CHANGE * strength * signs)


def _brightness(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.brightness(images, 1 + MAX_CHANGE * strength * signs)


def _sharpness(images: Pixels, signs: Signs, strength: float) -> Pixels:
    return color.sharpness(images, 1 + MAX_CHANGE * strength * signs)


def _shear_x(images: Pixels, signs: Signs, strength: float) -> Pixels:
    matrices = _unmoved(len(images))
    matrices[:, 0, 1] = MAX_SHEAR * strength * signs
    return warp(images, matrices)


def _shear_y(images: Pixels, signs: Signs, strength: float) -> Pixels:
    matrices = _unmoved(len(images))
    matrices[:, 1, 0] = MAX_SHEAR * strength * signs
    return warp(images, matrices)


def _translate_x(images: Pixels, signs: Signs, strength: float) -> Pixels:
    matrices = _unmoved(len(images))
    matrices[:, 0, 2] = -signs * int(MAX_SHIFT * strength * images.shape[3])
    return warp(images, matrices)


def _translate_y(images: Pixels, signs: Signs, strength: float) -> Pixels:
    matrices = _unmoved(len(images))
    matrices[:, 1, 2] = -signs * int(MAX_SHIFT * strength * images.shape[2])
    return warp(images, matrices)


def _unmoved(count: int) -> npt.NDArray[np.float32]:
    return np.tile(np.eye(2, 3, dtype=np.float32), (count, 1, 1))


OPERATIONS: Mapping[str, Operation] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""The paper's fourteen (section 3), by name."""
