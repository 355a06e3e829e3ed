"""Boxes (random erasing, cutout) and mixing (mixup, cutmix): places, shares and pixels."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import beta, kstest
from torchvision.transforms import RandomErasing

from train.config import AugmentConfig, ErasingConfig
from train.data.augment import PIECE_BYTES, mix
from train.data.draws import Draws, Stream
from train.data.erasing import (
    MIN_ASPECT,
    centred_boxes,
    cutout,
    erase,
    erasing_boxes,
    paste,
)
from train.data.geometry import Pixels
from train.data.mixing import Partners


def noise(count: int, channels: int = 3, height: int = 12, width: int = 10) -> Pixels:
    """Without zero, so that black is what was made black."""
    return np.random.default_rng(0).integers(1, 256, (count, channels, height, width), np.uint8)


def draws(count: int, epoch: int = 0) -> Draws:
    return Draws(5, epoch, np.arange(count, dtype=np.int64))


def largest_distance(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    """Of two samples' distributions (Kolmogorov and Smirnov)."""
    points = np.concatenate([left, right])
    shares = [np.searchsorted(np.sort(of), points, side="right") / len(of) for of in (left, right)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_paste_replaces_what_is_in_the_boxes_and_nothing_else() -> None:
    images, others = noise(3), noise(6)[3:]
    boxes = np.array([[0, 0, 12, 10], [2, 3, 5, 7], [4, 4, 4, 9]])
    expected = images.copy()
    expected[0] = others[0]
    expected[1, :, 2:5, 3:7] = others[1, :, 2:5, 3:7]
    paste(images, others, boxes)
    assert np.array_equal(images, expected)


def test_boxes_are_cut_at_the_edges() -> None:
    centres = np.array([[0.0, 0.0], [0.999, 0.999], [0.5, 0.5]])
    boxes = centred_boxes(centres, np.array([[4, 6], [4, 6], [5, 3]]), 12, 10)
    assert boxes.tolist() == [[0, 0, 2, 3], [9, 6, 12, 10], [4, 4, 9, 7]]


@pytest.mark.parametrize("side", [1, 5, 8])
def test_cutout_blackens_a_square_around_any_pixel(side: int) -> None:
    images = noise(3000)
    before = images.copy()
    cutout(images, side, draws(3000))
    black = images == 0
    assert np.array_equal(images[~black], before[~black])
    seen = set()
    for image in black[:, 0]:
        rows, columns = np.nonzero(image.any(1))[0], np.nonzero(image.any(0))[0]
        assert image.sum() == len(rows) * len(columns) <= side * side
        seen.add((rows[0], rows[-1], columns[0], columns[-1]))
    assert (black == black[:, :1]).all()
    # As many places as pixels, but for those that the edges cut alike.
    assert len(seen) == 120


def test_random_erasing_is_torchvisions() -> None:
    config = ErasingConfig(p=1, min_area=0.02, max_area=0.33)
    ours = erasing_boxes(config, draws(4000), 40, 30).astype(float)
    torch.manual_seed(0)
    blank = torch.zeros(1, 40, 30)
    drawn = [
        RandomErasing.get_params(blank, (0.02, 0.33), (MIN_ASPECT, 1 / MIN_ASPECT), [0])[:4]
        for _ in range(4000)
    ]
    top, left, tall, wide = np.array(drawn, float).T
    # The distance of two samples of 4000 is below 0.05 but for one time in 10,000.
    theirs = np.stack([top, left, top + tall, left + wide], 1)
    for column in range(4):
        assert largest_distance(ours[:, column], theirs[:, column]) < 0.06
    areas = (ours[:, 2] - ours[:, 0]) * (ours[:, 3] - ours[:, 1])
    assert largest_distance(areas, tall * wide) < 0.06


@pytest.mark.parametrize("fill", ["noise", "black"])
def test_erasing_takes_its_share_of_the_images(fill: str) -> None:
    config = ErasingConfig.model_validate({"p": 0.3, "fill": fill})
    images = noise(2000, 3, 20, 20)
    before = images.copy()
    erase(images, config, draws(2000))
    changed = (images != before).any((1, 2, 3))
    assert 500 < changed.sum() < 700
    erased = images[images != before]
    if fill == "black":
        assert (erased == 0).all()
    else:
        # Every value, different in each channel.
        assert len(np.unique(erased)) == 256
        assert not np.array_equal(images[changed][:, 0], images[changed][:, 1])
    kept = images.copy()
    erase(kept, config, draws(2000, epoch=1))
    assert not np.array_equal((kept != images).any((1, 2, 3)), changed)


def test_where_no_box_fits_nothing_is_erased() -> None:
    images = noise(50, 1, 1, 1)
    before = images.copy()
    erase(images, ErasingConfig(p=1), draws(50))
    assert np.array_equal(images, before)
    erase(images, ErasingConfig(p=1e-9), draws(50))
    assert np.array_equal(images, before)


def test_a_partner_is_any_other_row() -> None:
    labels = np.zeros(7, np.int64)
    partners = Partners(labels, "shuffle")
    rows = np.stack([partners.rows(draws(7, epoch)) for epoch in range(2000)])
    assert (rows != np.arange(7)).all()
    counts = np.bincount(rows[:, 3], minlength=7)
    assert counts[3] == 0
    # Each of the six 333 times: six standard deviations are 100.
    assert np.abs(np.delete(counts, 3) - 333).max() < 100
    some = partners.rows(draws(7, 4).of(np.array([5, 2])))
    assert np.array_equal(some, partners.rows(draws(7, 4))[[5, 2]])


def test_balanced_partners_come_from_all_classes_alike() -> None:
    labels = np.repeat(np.array([4, 1, 4], np.int64), [500, 10, 490])
    rows = Partners(labels, "balanced").rows(draws(1000))
    share = np.mean(labels[rows] == 1)
    assert 0.4 < share < 0.6
    assert len(np.unique(rows[labels[rows] == 1])) == 10
    assert len(np.unique(rows[labels[rows] == 4])) > 300


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 4.0, 1e6])
def test_mixup_blends_by_the_share_it_gives(alpha: float) -> None:
    images, others = noise(4000, 1, 3, 3), noise(8000, 1, 3, 3)[4000:]
    mixed = images.copy()
    share = mix(mixed, others, AugmentConfig(mixup=alpha), draws(4000))
    assert share.dtype == np.float32
    own = share.astype(float)[:, None, None, None]
    exact = own * images + (1 - own) * others
    # A half is rounded up.
    assert np.array_equal(mixed, np.floor(exact + 0.5))
    steps = np.arange(257)
    counts = np.bincount(np.rint(share * 256).astype(int), minlength=257)
    expected = beta.cdf((steps + 0.5) / 256, alpha, alpha)
    # One sample of 4000 is 0.035 away but for one time in 10,000.
    assert np.abs(counts.cumsum() / 4000 - expected).max() < 0.04


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_gives_the_share_that_is_left(alpha: float) -> None:
    images = np.zeros((3000, 3, 32, 24), np.uint8)
    others = np.ones_like(images)
    config = AugmentConfig(cutmix=alpha)
    share = mix(images, others, config, draws(3000))
    assert (images == images[:, :1]).all()
    pasted = images[:, 0].astype(bool)
    left = 1 - pasted.mean((1, 2))
    np.testing.assert_allclose(share, left, atol=1e-6)
    rows, columns = pasted.any(2).sum(1), pasted.any(1).sum(1)
    assert np.array_equal(rows * columns, pasted.sum((1, 2)))
    # Before the edges cut a box, its area is the drawn share: compare those that are whole.
    uniform = draws(3000).uniform(Stream.MIX_SHARE)
    drawn = 1 - beta.ppf(uniform, alpha, alpha)
    inside = ~(pasted[:, 0] | pasted[:, -1]).any(1) & ~(pasted[..., 0] | pasted[..., -1]).any(1)
    inside &= pasted.any((1, 2))
    assert inside.sum() > 300
    side = np.sqrt(drawn[inside])
    assert np.array_equal(rows[inside], np.floor(side * 32))
    assert np.array_equal(columns[inside], np.floor(side * 24))
    assert kstest(1 - drawn, beta(alpha, alpha).cdf).statistic < 0.04


def test_a_cut_box_may_lie_anywhere() -> None:
    images = np.zeros((5000, 1, 16, 16), np.uint8)
    mix(images, np.ones_like(images), AugmentConfig(cutmix=1), draws(5000))
    often = images.mean((0, 1))
    # Uniform middles: seldom in the corners, alike on both sides.
    assert np.abs(often - often[::-1, ::-1]).max() < 0.05
    assert often[0, 0] < often[8, 8]


def test_with_both_half_of_the_images_take_each() -> None:
    images = np.full((2000, 1, 20, 20), 10, np.uint8)
    others = np.full_like(images, 210)
    both = AugmentConfig(mixup=1, cutmix=1)
    share = mix(images, others, both, draws(2000))
    levels = [len(np.unique(image)) for image in images]
    blended = np.array(
        [image.min() == image.max() and image.min() not in (10, 210) for image in images]
    )
    assert 900 < blended.sum() < 1100
    assert max(levels) == 2
    means = images.mean((1, 2, 3))
    np.testing.assert_allclose(means, 10 * share + 210 * (1 - share), atol=0.51)
    alone = np.full_like(images, 10)
    alone_share = mix(alone, others, AugmentConfig(mixup=1), draws(2000))
    assert np.array_equal(images[blended], alone[blended])
    assert np.array_equal(share[blended], alone_share[blended])


@pytest.mark.parametrize(
    "config", [AugmentConfig(mixup=0.4), AugmentConfig(cutmix=1), AugmentConfig(mixup=1, cutmix=1)]
)
def test_mixing_does_not_depend_on_the_batch(config: AugmentConfig) -> None:
    images, others = noise(60), noise(120)[60:]
    whole = images.copy()
    share = mix(whole, others, config, draws(60))
    assert len(np.unique(share)) > 20
    for rows in ([3], [50, 2, 31], list(range(59, -1, -1))):
        some = images[rows]
        own = mix(some, others[rows], config, draws(60).of(np.array(rows)))
        assert np.array_equal(some, whole[rows])
        assert np.array_equal(own, share[rows])


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_large_batches_are_mixed_in_pieces_that_do_not_show(more: int) -> None:
    count = PIECE_BYTES // (64 * 64) + more
    images, others = noise(count, 1, 64, 64), noise(2 * count, 1, 64, 64)[count:]
    config = AugmentConfig(mixup=1)
    whole = images.copy()
    share = mix(whole, others, config, draws(count))
    last = images[-2:]
    own = mix(last, others[-2:], config, draws(count).of(np.arange(count - 2, count)))
    assert np.array_equal(last, whole[-2:])
    assert np.array_equal(own, share[-2:])
