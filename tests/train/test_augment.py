"""What happens to an image is a function of (seed, epoch, sample) alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from train.config import AugmentConfig
from train.data.augment import CROP_ATTEMPTS, augment, crop_box, random_crops, uniform

NUM_DRAWS = 2 * CROP_ATTEMPTS + 2


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (1000, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()


def test_augmentation_depends_on_the_sample_and_not_on_its_batch(images: torch.Tensor) -> None:
    config = AugmentConfig(flip=True, translate=2)
    rows = np.arange(100, dtype=np.int64)
    images = images[:100]
    together = augment(config, images, rows, seed=1, epoch=4)
    shuffled = np.random.default_rng(0).permutation(100)
    apart = augment(config, images[shuffled], rows[shuffled], seed=1, epoch=4)
    assert torch.equal(together[shuffled], apart)
    assert not torch.equal(together, augment(config, images, rows, seed=1, epoch=5))
    assert not torch.equal(together, augment(config, images, rows, seed=2, epoch=4))


def test_flip_mirrors_about_half(images: torch.Tensor) -> None:
    rows = np.arange(1000, dtype=np.int64)
    flipped = augment(AugmentConfig(flip=True), images, rows, seed=0, epoch=0)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert bool((mirrored | kept).all())
    assert 400 < int(mirrored.sum()) < 600


def test_translate_shifts_by_every_offset_and_brings_in_black() -> None:
    images = torch.full((2000, 3, 5, 6), 9, dtype=torch.uint8)
    images[:, :, 2, 3] = 200
    rows = np.arange(2000, dtype=np.int64)
    shifted = augment(AugmentConfig(translate=2), images, rows, seed=0, epoch=0)
    offsets = set()
    for image in shifted:
        assert torch.equal(image[0], image[2])
        ((row, column),) = (image[0] == 200).nonzero().tolist()
        down, right = row - 2, column - 3
        offsets.add((down, right))
        inside = torch.zeros(5, 6, dtype=torch.bool)
        inside[max(0, down) : 5 + min(0, down), max(0, right) : 6 + min(0, right)] = True
        assert bool((image[0][~inside] == 0).all())
        assert bool((image[0][inside] > 0).all())
    assert len(offsets) == 25


def test_draws_are_uniform_and_independent() -> None:
    samples = np.arange(100_000, dtype=np.int64)
    first, second = uniform(0, 0, samples, 0), uniform(0, 0, samples, 1)
    assert 0 <= first.min() < first.max() < 1
    counts, _ = np.histogram(first, bins=20, range=(0, 1))
    # 20 bins of 5,000: six standard deviations are 414.
    assert np.abs(counts - 5000).max() < 414
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.02


def test_a_crop_depends_on_the_sample_and_not_on_its_batch() -> None:
    rows = np.arange(50, dtype=np.int64)

    def boxes(rows: np.ndarray[tuple[int], np.dtype[np.int64]], epoch: int = 1) -> list[object]:
        return [crop(64, 48) for crop in random_crops(0.3, rows, seed=2, epoch=epoch)]

    together = boxes(rows)
    assert boxes(rows[::-1]) == together[::-1]
    assert boxes(rows[7:8]) == together[7:8]
    assert len(set(together)) > 45
    assert boxes(rows, epoch=2) != together


@pytest.mark.parametrize("size", [(64, 64), (500, 375), (40, 90)])
@pytest.mark.parametrize("scale", [0.08, 0.35])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], scale: float) -> None:
    width, height = size
    crops = random_crops(scale, np.arange(4000, dtype=np.int64), seed=0, epoch=0)
    ours = np.array([crop(width, height) for crop in crops], float)
    assert ours.min() >= 0
    assert ours[:, 2].max() <= width
    assert ours[:, 3].max() <= height
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    drawn = np.array(
        [RandomResizedCrop.get_params(blank, [scale, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)],
        float,
    )
    top, left, down, across = drawn.T
    theirs = np.stack([left, top, left + across, top + down], 1)
    for column in range(4):
        # Of two samples of 4000, the distributions' largest distance is below 0.05 but for one
        # time in 10,000 (Kolmogorov and Smirnov); 0.06 leaves room.
        points = np.sort(np.concatenate([ours[:, column], theirs[:, column]]))
        distance = [
            np.searchsorted(np.sort(sample[:, column]), points, side="right") / 4000
            for sample in (ours, theirs)
        ]
        assert np.abs(distance[0] - distance[1]).max() < 0.06


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (1, 1)])
def test_where_no_draw_fits_the_middle_is_taken_as_torchvision_takes_it(
    size: tuple[int, int],
) -> None:
    width, height = size
    # A whole image's area at aspect ratio 1 fits into neither of the long ones.
    draws = np.array([0.5, 0.5, *[1 - 1e-9, 0.5] * CROP_ATTEMPTS])
    assert len(draws) == NUM_DRAWS
    left, top, right, bottom = crop_box(0.9, draws, width, height)
    expected = RandomResizedCrop.get_params(
        torch.empty(1, height, width), [1.0, 1.0], [3 / 4, 4 / 3]
    )
    assert (top, left, bottom - top, right - left) == expected
