"""Evaluate a finished run again, on its own data set or on another, from one view or from many."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.dataset import Dataset, ImageSplit, SplitName
from cluster.errors import DataError
from cluster.store import Store
from train.data.loader import eval_batches
from train.export import load_classifier
from train.inference import EVAL_BATCH, predict
from train.metrics import Evaluation, evaluate_logits
from train.models.classifier import Classifier
from train.runs import Run

Views = Literal["mirror", "mirror-translate"]
"""Test-time augmentation: which views of an image the logits are averaged over."""


def evaluate_run(run: Run, store: Store, split: SplitName, data: str | None = None) -> Evaluation:
    """Compute every figure of a split with the run's weights, in this process.

    On the run's own data set the result is kept with the run.

    Args:
        run: a finished run.
        store: where data sets live.
        split: which images.
        data: another data set, ``NAME`` or ``NAME@VERSION``.

    Raises:
        NotFoundError: the run has not finished, or there is no such data set.
        DataError: the other data set has other classes or images.
    """
    own, dataset, classifier = _open(run, store, data)
    images = dataset.split(split)
    logits = predict(classifier, images, torch.device("cpu"))
    evaluation = _evaluate(logits, dataset, split)
    if dataset.meta.digest == own.meta.digest:
        run.write_logits(logits.astype(np.float32), split)
        run.write_evaluation(evaluation, split)
    return evaluation


def evaluate_views(
    run: Run, store: Store, split: SplitName, views: Views, data: str | None = None
) -> Evaluation:
    """As :func:`evaluate_run`, with logits averaged over several views; nothing is kept.

    Raises:
        NotFoundError: the run has not finished, or there is no such data set.
        DataError: the other data set has other classes or images, or these cannot be moved.
    """
    _, dataset, classifier = _open(run, store, data)
    image = dataset.meta.image
    if views == "mirror-translate" and min(image.height, image.width) < 2:
        raise DataError(
            f"{dataset.reference} has images of {image.width}x{image.height}; mirror-translate "
            "needs two pixels each way"
        )
    return _evaluate(predict_views(classifier, dataset.split(split), views), dataset, split)


@torch.inference_mode()
def predict_views(
    classifier: Classifier, split: ImageSplit, views: Views
) -> npt.NDArray[np.float32]:
    """Logits ``[rows, classes]`` of a split, each the weighted mean over views of the image."""
    classifier.eval()
    return np.concatenate(
        [
            view_logits(classifier, batch.images, views).numpy()
            for batch in eval_batches(split, EVAL_BATCH)
        ]
    )


def view_logits(classifier: Classifier, images: Tensor, views: Views) -> Tensor:
    """Test-time augmentation as airbench states it (Jordan 2024, section 3.5 and its code).

    ``mirror`` is the mean of an image and its mirror image. ``mirror-translate`` is half of that,
    and half the same of the image moved by one pixel, up and left as well as down and right, with
    what comes in at the edges reflected: six views.

    Args:
        classifier: in evaluation mode.
        images: uint8 ``[n, channels, height, width]``.
        views: which.

    Returns:
        float32 ``[n, classes]``.
    """
    still = _mirrored(classifier, images)
    if views == "mirror":
        return still
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    corners = padded[:, :, :height, :width], padded[:, :, 2:, 2:]
    moved = torch.stack([_mirrored(classifier, corner) for corner in corners]).mean(0)
    return 0.5 * still + 0.5 * moved


def _mirrored(classifier: Classifier, images: Tensor) -> Tensor:
    own: Tensor = classifier(images)
    mirrored: Tensor = classifier(images.flip(-1))
    return 0.5 * own.float() + 0.5 * mirrored.float()


def _open(run: Run, store: Store, data: str | None) -> tuple[Dataset, Dataset, Classifier]:
    """The run's own data set, the one to evaluate on, and the trained classifier."""
    own = run.dataset(store)
    dataset = own if data is None else Dataset.find(store, data)
    _require_same_kind(own, dataset)
    return own, dataset, load_classifier(run, own)


def _evaluate(logits: npt.NDArray[np.float32], dataset: Dataset, split: SplitName) -> Evaluation:
    return evaluate_logits(
        logits,
        dataset.split(split).labels,
        dataset.meta.class_names,
        dataset=dataset.reference,
        split=split,
    )


def _require_same_kind(own: Dataset, other: Dataset) -> None:
    if other.meta.class_names != own.meta.class_names:
        raise DataError(
            f"{other.reference} has classes {', '.join(other.meta.class_names)}; "
            f"the run was trained on {', '.join(own.meta.class_names)}"
        )
    if other.meta.image.shape != own.meta.image.shape:
        raise DataError(
            f"{other.reference} has images {other.meta.image.shape}; "
            f"the run was trained on {own.meta.image.shape}"
        )
