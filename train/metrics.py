"""How good a classifier is, from its logits: numpy, no model and no cluster."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from cluster.config import Frozen
from cluster.runtime import softmax

CALIBRATION_BINS = 15


class ClassMetrics(Frozen):
    """One row of the per-class table."""

    name: str
    precision: float
    """0 where the class was never predicted."""
    recall: float
    f1: float
    support: int
    """Images of the class."""


class CalibrationBin(Frozen):
    """Predictions of similar confidence."""

    confidence: float
    """Mean confidence."""
    accuracy: float
    images: int


class Evaluation(Frozen):
    """What ``evaluate`` measures on one split."""

    schema_version: Literal[1] = 1
    dataset: str
    split: str
    images: int
    accuracy: float
    loss: float
    """Mean cross-entropy in nats."""
    ece: float
    """Expected calibration error (Guo et al. 2017, equation 3), 15 bins of equal width."""
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows are true classes, columns predicted ones."""
    calibration: tuple[CalibrationBin, ...]

    def summary(self) -> dict[str, float]:
        """The numbers that go to tables, the tracker and the bundle."""
        f1 = float(np.mean([row.f1 for row in self.per_class]))
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "ece": self.ece,
            "macro_f1": f1,
        }


def evaluate_logits(
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    class_names: tuple[str, ...],
    *,
    dataset: str,
    split: str,
) -> Evaluation:
    """Compute every figure of a split.

    Args:
        logits: float32 ``[n, classes]``.
        labels: int64 ``[n]``.
        class_names: in label order.
        dataset: reference of the data set, for the record.
        split: its name, for the record.
    """
    num_classes = len(class_names)
    loss = _cross_entropy(logits, labels)
    predicted = logits.argmax(1)
    confusion = np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(
        num_classes, num_classes
    )
    correct = predicted == labels
    bins = calibration_bins(_confidence(logits), correct)
    ece = sum(row.images * abs(row.accuracy - row.confidence) for row in bins) / len(labels)
    return Evaluation(
        dataset=dataset,
        split=split,
        images=len(labels),
        accuracy=float(correct.mean()),
        loss=loss,
        ece=float(ece),
        per_class=tuple(
            _class_metrics(confusion, index, name) for index, name in enumerate(class_names)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        calibration=bins,
    )


def calibration_bins(
    confidence: npt.NDArray[np.float32], correct: npt.NDArray[np.bool_]
) -> tuple[CalibrationBin, ...]:
    """Group predictions by confidence; empty bins, and confidences that are NaN, are left out."""
    # Of training that diverged: NaN is no number of a bin, and numpy warns when it is made one.
    known = np.isfinite(confidence)
    confidence, correct = confidence[known], correct[known]
    bin_of = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = []
    for index in range(CALIBRATION_BINS):
        inside = bin_of == index
        if inside.any():
            bins.append(
                CalibrationBin(
                    confidence=float(confidence[inside].mean()),
                    accuracy=float(correct[inside].mean()),
                    images=int(inside.sum()),
                )
            )
    return tuple(bins)


def worst_mistakes(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """Rows of the wrong predictions that the model was surest of, worst first."""
    predicted = logits.argmax(1)
    confidence = _confidence(logits)
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:count]


def _cross_entropy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Mean over the images, in nats; NaN where a logit is no number."""
    wide = logits.astype(np.float64)
    top = wide.max(1)
    with np.errstate(invalid="ignore"):  # Infinity less infinity, of training that diverged.
        log_total = np.log(np.exp(wide - top[:, None]).sum(1)) + top
        return float((log_total - wide[np.arange(len(labels)), labels]).mean())


def _confidence(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probability of the predicted class; NaN where a logit is no number."""
    with np.errstate(invalid="ignore"):
        largest: npt.NDArray[np.float32] = softmax(logits).max(1)
    return largest


def _class_metrics(confusion: npt.NDArray[np.int64], index: int, name: str) -> ClassMetrics:
    hits = int(confusion[index, index])
    support = int(confusion[index].sum())
    predictions = int(confusion[:, index].sum())
    precision = hits / predictions if predictions else 0.0
    recall = hits / support if support else 0.0
    total = precision + recall
    return ClassMetrics(
        name=name,
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / total if total else 0.0,
        support=support,
    )
