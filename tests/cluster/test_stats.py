"""Reference statistics do not depend on how the images come."""

import numpy as np
import pytest

from cluster.stats import BINS, reference_statistics

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 3, 6, 5), dtype=np.uint8)
LABELS = np.arange(50, dtype=np.int64) % 4
LOGITS = RNG.normal(size=(50, 4)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_images_may_come_in_batches_of_any_size(size: int) -> None:
    batches = (IMAGES[start : start + size] for start in range(0, 50, size))
    found = reference_statistics(batches, LABELS, LOGITS)
    assert found.images == 50
    assert found.channel_mean == pytest.approx(IMAGES.mean((0, 2, 3)) / 255)
    assert found.channel_std == pytest.approx(IMAGES.std((0, 2, 3)) / 255)
    brightness = IMAGES.mean((1, 2, 3)) / 255
    assert list(found.brightness_histogram) == np.histogram(brightness, BINS, (0, 1))[0].tolist()


def test_labels_predictions_and_confusion_agree() -> None:
    found = reference_statistics([IMAGES], LABELS, LOGITS)
    confusion = np.array(found.confusion)
    predicted = LOGITS.argmax(1)
    assert confusion.sum(1).tolist() == list(found.label_counts) == [13, 13, 12, 12]
    assert confusion.sum(0).tolist() == list(found.predicted_counts)
    assert confusion.trace() == (predicted == LABELS).sum()
    assert sum(found.confidence_histogram) == sum(found.entropy_histogram) == 50
