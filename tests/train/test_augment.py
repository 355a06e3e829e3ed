"""What happens to an image is a function of (seed, epoch, sample) alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torchvision.transforms import RandomResizedCrop

from cluster.errors import ConfigError
from train.config import AugmentConfig, ColorConfig, ErasingConfig, RandAugmentConfig
from train.data.augment import augment, check_augment, without_effect
from train.data.crops import CROP_ATTEMPTS, crop_box, random_crops
from train.data.draws import Draws, Stream
from train.data.geometry import Pixels

EVERYTHING = AugmentConfig(
    flip=True,
    translate=2,
    padding="reflect",
    rand_augment=RandAugmentConfig(ops=3, magnitude=15),
    color=ColorConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    erasing=ErasingConfig(),
    cutout=4,
)
EACH = {
    "flip": AugmentConfig(flip=True),
    "alternating": AugmentConfig(flip="alternating"),
    "translate": AugmentConfig(translate=3),
    "reflect": AugmentConfig(translate=3, padding="reflect"),
    "rand_augment": AugmentConfig(rand_augment=RandAugmentConfig()),
    "color": AugmentConfig(color=ColorConfig(brightness=0.5, contrast=0.5)),
    "erasing": AugmentConfig(erasing=ErasingConfig(p=1)),
    "cutout": AugmentConfig(cutout=6),
    "everything": EVERYTHING,
}


def noise(count: int, channels: int = 3, height: int = 12, width: int = 10) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width), np.uint8)


def draws(count: int, *, seed: int = 1, epoch: int = 4) -> Draws:
    return Draws(seed, epoch, np.arange(count, dtype=np.int64))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", EACH.values(), ids=EACH)
def test_augmentation_depends_on_seed_epoch_and_sample(
    config: AugmentConfig, channels: int
) -> None:
    images = noise(100, channels)
    first = augment(images.copy(), config, draws(100))
    assert first.shape == images.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, augment(images.copy(), config, draws(100)))
    for other in (draws(100, seed=2), draws(100, epoch=5)):
        assert not np.array_equal(first, augment(images.copy(), config, other))
    # One image, again and again: each sample has its own changes.
    same = augment(np.repeat(images[:1], 100, 0), config, draws(100))
    different = len(np.unique(same.reshape(100, -1), axis=0))
    assert different == 2 if config.flip and not config.translate else different > 15


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, 39), min_size=1, max_size=20),
    channels=st.sampled_from([1, 3]),
    name=st.sampled_from(sorted(EACH)),
)
def test_the_batch_does_not_matter(rows: list[int], channels: int, name: str) -> None:
    images = noise(40, channels)
    whole = augment(images.copy(), EACH[name], draws(40))
    chosen = np.array(rows, np.int64)
    some = augment(images[chosen], EACH[name], draws(40).of(chosen))
    assert np.array_equal(some, whole[chosen])


def test_draws_are_uniform_and_independent() -> None:
    many = Draws(0, 0, np.arange(100_000, dtype=np.int64))
    numbers = [
        many.uniform(Stream.FLIP),
        many.uniform(Stream.SHIFT),
        many.uniform(Stream.SHIFT, 1),
        Draws(0, 1, many.samples).uniform(Stream.FLIP),
        Draws(1, 0, many.samples).uniform(Stream.FLIP),
    ]
    for first in numbers:
        assert 0 <= first.min() < first.max() < 1
        counts, _ = np.histogram(first, bins=20, range=(0, 1))
        # 20 bins of 5,000: six standard deviations are 414.
        assert np.abs(counts - 5000).max() < 414
        assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.02
    assert np.abs(np.corrcoef(numbers) - np.eye(5)).max() < 0.02


def test_draws_do_not_depend_on_how_many_are_asked_for() -> None:
    several = draws(10).uniforms(Stream.CROP, 5, first=2)
    for number in range(5):
        assert np.array_equal(several[:, number], draws(10).uniform(Stream.CROP, 2 + number))
    flips = draws(10).uniform(Stream.FLIP)
    assert np.array_equal(draws(10).of(np.array([7])).uniform(Stream.FLIP), flips[7:8])


def test_noise_bytes_are_uniform_and_different_for_each_sample() -> None:
    drawn = draws(200).noise(Stream.ERASING_NOISE, 1001)
    assert drawn.shape == (200, 1001)
    counts = np.bincount(drawn.ravel(), minlength=256)
    # Each value 782 times, give or take 28: six standard deviations.
    assert np.abs(counts - 200_200 / 256).max() < 170
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.2
    assert np.array_equal(drawn[:, :50], draws(200).noise(Stream.ERASING_NOISE, 50))


def test_whole_numbers_are_below_their_bound_and_all_come() -> None:
    assert np.unique(draws(1000).integers(Stream.OPERATION, 14)).tolist() == list(range(14))


def test_a_crop_depends_on_the_sample_and_not_on_its_batch() -> None:
    rows = np.arange(50, dtype=np.int64)

    def boxes(rows: np.ndarray[tuple[int], np.dtype[np.int64]], epoch: int = 1) -> list[object]:
        return [crop(64, 48) for crop in random_crops(0.3, Draws(2, epoch, rows))]

    together = boxes(rows)
    assert boxes(rows[::-1]) == together[::-1]
    assert boxes(rows[7:8]) == together[7:8]
    assert len(set(together)) > 45
    assert boxes(rows, epoch=2) != together


@pytest.mark.parametrize("size", [(64, 64), (500, 375), (40, 90)])
@pytest.mark.parametrize("scale", [0.08, 0.35])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], scale: float) -> None:
    width, height = size
    crops = random_crops(scale, draws(4000, seed=0, epoch=0))
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
    numbers = np.array([0.5, 0.5, *[1 - 1e-9, 0.5] * CROP_ATTEMPTS])
    left, top, right, bottom = crop_box(0.9, numbers, width, height)
    expected = RandomResizedCrop.get_params(
        torch.empty(1, height, width), [1.0, 1.0], [3 / 4, 4 / 3]
    )
    assert (top, left, bottom - top, right - left) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AugmentConfig(translate=10), r"augment.translate=10: at most 9 for images of 10x12"),
        (AugmentConfig(cutout=11), r"augment.cutout=11: at most 10 for images of 10x12 pixels"),
        (AugmentConfig(mixup=0.2), r"augment.mixup=0.2 needs a training split of two images"),
        (AugmentConfig(cutmix=1), r"augment.cutmix=1 needs a training split of two images"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(config: AugmentConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_augment(config, 1, 12, 10)


def test_what_just_fits_is_done() -> None:
    config = AugmentConfig(translate=9, padding="reflect", cutout=10, mixup=0.2)
    check_augment(config, 2, 12, 10)
    assert augment(noise(50), config, draws(50)).shape == (50, 3, 12, 10)


def test_a_pixel_is_an_image_too() -> None:
    config = EVERYTHING.model_copy(update={"translate": 0, "cutout": 1})
    assert augment(noise(50, 3, 1, 1), config, draws(50)).shape == (50, 3, 1, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("erasing", {"min_area": 0.5, "max_area": 0.4}),
        ("color", {}),
        ("mixup", float("inf")),
        ("cutmix", float("nan")),
        ("flip", "sometimes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        AugmentConfig.model_validate({field: value})


def test_colours_of_grey_images_are_named() -> None:
    config = AugmentConfig(color=ColorConfig(hue=0.1, brightness=0.1))
    assert without_effect(config, 1) == ["augment.color.hue has no effect on grey images"]
    assert without_effect(config, 3) == without_effect(AugmentConfig(), 1) == []
