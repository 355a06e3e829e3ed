"""What the digits model must do, whatever its accuracy: asked of the bundle, as a server has it."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from digits import RegisteredModel

from cluster.dataset import Dataset, Split
from cluster.images import decode_image, encode_png
from cluster.runtime import Session, open_session, softmax

Images = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def session(digits_bundle: RegisteredModel) -> Session:
    return open_session(digits_bundle.bundle)


@pytest.fixture(scope="module")
def test_split(digits_dataset: Dataset) -> Split:
    split = digits_dataset.split("test")
    return Split(split.take(slice(None)), split.labels)


def labels(session: Session, images: Images) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = session.run(np.ascontiguousarray(images)).argmax(1)
    return found


def shift_right(images: Images) -> Images:
    return np.concatenate([np.zeros_like(images[..., :1]), images[..., :-1]], axis=-1)


def dim(images: Images) -> Images:
    return (images * 0.85).astype(np.uint8)


def add_noise(images: Images) -> Images:
    noise = np.random.default_rng(0).normal(0, 6, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "least_share"), [(shift_right, 0.85), (dim, 0.98), (add_noise, 0.98)]
)
def test_invariance_small_changes_keep_the_label(
    session: Session, test_split: Split, change: Callable[[Images], Images], least_share: float
) -> None:
    before = labels(session, test_split.images)
    after = labels(session, change(test_split.images))
    assert (before == after).mean() >= least_share


def test_direction_erasing_the_ink_takes_the_confidence(
    session: Session, test_split: Split
) -> None:
    erased = test_split.images.copy()
    erased[..., 2:6, :] = 0
    before = softmax(session.run(np.ascontiguousarray(test_split.images))).max(1)
    after = softmax(session.run(erased)).max(1)
    assert after.mean() < before.mean() - 0.1


def test_minimum_every_class_is_recognised(session: Session, test_split: Split) -> None:
    predicted = labels(session, test_split.images)
    for label in range(10):
        assert (predicted[test_split.labels == label] == label).mean() >= 0.9


def test_minimum_a_clear_scan_of_each_digit(session: Session, digits_dataset: Dataset) -> None:
    """The mean of a class's training scans is as plain a picture of the digit as there is."""
    train = digits_dataset.split("train")
    means = [
        train.take(np.flatnonzero(train.labels == label)).mean(0).round().astype(np.uint8)
        for label in range(10)
    ]
    assert labels(session, np.stack(means)).tolist() == list(range(10))


def test_an_answer_does_not_depend_on_its_batch(session: Session, test_split: Split) -> None:
    together = session.run(np.ascontiguousarray(test_split.images[:50]))
    for row in range(50):
        alone = session.run(np.ascontiguousarray(test_split.images[row : row + 1]))
        assert np.abs(alone[0] - together[row]).max() < 1e-4
        assert alone[0].argmax() == together[row].argmax()


def test_a_picture_of_another_size_is_read_as_the_same_digit(
    session: Session, test_split: Split, digits_bundle: RegisteredModel
) -> None:
    spec = digits_bundle.bundle.manifest.image
    large = test_split.images.repeat(4, axis=-1).repeat(4, axis=-2)
    decoded = np.stack([decode_image(encode_png(image), spec) for image in large])
    assert (labels(session, decoded) == labels(session, test_split.images)).mean() >= 0.97
