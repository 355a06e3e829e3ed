"""Random numbers that are functions of (seed, epoch, sample), whatever was drawn before them."""

import functools
from enum import IntEnum

import numpy as np
import numpy.typing as npt

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1


class Stream(IntEnum):
    """What a number is drawn for; numbers of two streams know nothing of each other."""

    FLIP = 0
    SHIFT = 1
    CROP = 2
    OPERATION = 3
    SIGN = 4
    COLOR = 5
    ERASING = 6
    ERASING_NOISE = 7
    CUTOUT = 8
    PARTNER = 9
    MIX_KIND = 10
    MIX_SHARE = 11
    MIX_PLACE = 12


class Draws:
    """The random numbers of some samples in one epoch.

    Each is a hash of (seed, epoch, stream, number, sample): SplitMix64's finaliser (Steele, Lea and
    Flood 2014), applied to each part in turn.

    Args:
        seed: of the run.
        epoch: from 0.
        samples: int64 ``[n]``, rows of the training split; see :func:`tell_apart` for those that
            come again within an epoch.
    """

    def __init__(self, seed: int, epoch: int, samples: npt.NDArray[np.int64]) -> None:
        self.seed = seed
        self.epoch = epoch
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def of(self, samples: npt.NDArray[np.int64]) -> "Draws":
        """The numbers of other samples in the same epoch."""
        return Draws(self.seed, self.epoch, samples)

    def bits(self, stream: Stream, first: int = 0, count: int = 1) -> npt.NDArray[np.uint64]:
        """``count`` hashes a sample, from a stream's number ``first`` on: uint64 ``[n, count]``."""
        keys = _keys(self.seed, self.epoch, stream, first, count)
        return _hash(self.samples.astype(np.uint64)[:, None] + keys)

    def uniforms(self, stream: Stream, count: int, first: int = 0) -> npt.NDArray[np.float64]:
        """``count`` numbers in [0, 1) a sample: float64 ``[n, count]``."""
        return (self.bits(stream, first, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def uniform(self, stream: Stream, number: int = 0) -> npt.NDArray[np.float64]:
        """One number in [0, 1) a sample: float64 ``[n]``."""
        return self.uniforms(stream, 1, number)[:, 0]

    def integers(self, stream: Stream, below: int, number: int = 0) -> npt.NDArray[np.int64]:
        """One whole number in [0, below) a sample: int64 ``[n]``."""
        return (self.uniform(stream, number) * below).astype(np.int64)

    def noise(self, stream: Stream, count: int) -> npt.NDArray[np.uint8]:
        """Random bytes: uint8 ``[n, count]``. Each hash gives eight."""
        steps = np.arange(-(-count // 8), dtype=np.uint64) * np.uint64(_GOLDEN)
        return _hash(self.bits(stream) + steps).view(np.uint8)[:, :count]


@functools.lru_cache(maxsize=256)
def _keys(seed: int, epoch: int, stream: Stream, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Where each number of a stream begins to count samples: the same for a whole epoch."""
    start = _hash_one(_hash_one(_hash_one(seed) + epoch) + stream)
    return np.array([_hash_one(start + first + number) for number in range(count)], np.uint64)


def _hash(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # Arrays of integers wrap around without a warning.
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    return values ^ (values >> np.uint64(31))


def _hash_one(value: int) -> int:
    """:func:`_hash` of one number, without an array's overhead."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)
