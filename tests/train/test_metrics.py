"""Figures of an evaluation, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support

from cluster.runtime import softmax
from train.metrics import calibration_bins, evaluate_logits, worst_mistakes

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    logits = rng.normal(size=(500, 4)).astype(np.float32)
    logits[np.arange(500), labels] += 1.5
    return logits, labels


def test_figures_are_those_of_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = answers
    found = evaluate_logits(logits, labels, NAMES, dataset="made@1", split="test")
    predicted = logits.argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(labels, predicted)
    assert [row.precision for row in found.per_class] == pytest.approx(precision)
    assert [row.recall for row in found.per_class] == pytest.approx(recall)
    assert [row.f1 for row in found.per_class] == pytest.approx(f1)
    assert [row.support for row in found.per_class] == support.tolist()
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted))
    assert found.loss == pytest.approx(log_loss(labels, softmax(logits)), rel=1e-5)
    assert found.accuracy == pytest.approx((predicted == labels).mean())
    assert found.summary()["macro_f1"] == pytest.approx(
        f1_score(labels, predicted, average="macro")
    )
    assert found.images == 500


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    logits = np.array([[2, 0, -9, -9], [0, 2, -9, -9]], np.float32)
    found = evaluate_logits(logits, np.array([0, 2]), NAMES, dataset="x", split="test")
    row = found.per_class[2]
    assert (row.precision, row.recall, row.f1, row.support) == (0, 0, 0, 1)
    assert found.per_class[3].support == 0


def test_calibration_error_by_hand() -> None:
    # Two bins: confidence 0.6 right once in two (|0.5 - 0.6|), confidence 0.95 always right.
    logits = np.log(np.array([[0.6, 0.4], [0.6, 0.4], [0.95, 0.05], [0.95, 0.05]], np.float32))
    found = evaluate_logits(logits, np.array([0, 1, 0, 0]), ("a", "b"), dataset="x", split="test")
    assert found.ece == pytest.approx(0.5 * 0.1 + 0.5 * 0.05, abs=1e-6)


def test_every_prediction_is_in_one_bin() -> None:
    confidence = np.array([0.0, 1 / 15, 0.5, 0.999, 1.0], np.float32)
    bins = calibration_bins(confidence, np.ones(5, bool))
    assert sum(row.images for row in bins) == 5


def test_the_loss_of_large_logits_is_finite() -> None:
    logits = np.array([[1e4, -1e4]], np.float32)
    found = evaluate_logits(logits, np.array([1]), ("a", "b"), dataset="x", split="test")
    assert found.loss == pytest.approx(2e4)


def test_worst_mistakes_are_the_surest() -> None:
    logits = np.array([[9, 0], [1, 0], [0, 3], [5, 0]], np.float32)
    labels = np.array([1, 1, 1, 1])
    assert worst_mistakes(logits, labels, 2).tolist() == [0, 3]
    assert worst_mistakes(logits, np.array([0, 0, 1, 0]), 9).tolist() == []


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_counted_without_a_warning(broken: float) -> None:
    logits = np.zeros((4, 2), np.float32)
    logits[:, 0] = [2, 2, broken, 2]
    labels = np.array([0, 1, 0, 0])
    found = evaluate_logits(logits, labels, ("a", "b"), dataset="x", split="test")
    assert found.images == 4
    assert sum(row.images for row in found.calibration) == (4 if broken == -np.inf else 3)
    assert not np.isfinite(found.loss)
    assert 1 in worst_mistakes(logits, labels, 9)
