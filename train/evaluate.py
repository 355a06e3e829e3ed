"""Evaluate a finished run again, on its own data set or on another."""

import numpy as np
import torch

from cluster.dataset import Dataset, SplitName
from cluster.errors import DataError
from cluster.store import Store
from train.export import load_classifier
from train.loop import predict_shard
from train.metrics import Evaluation, evaluate_logits
from train.runs import Run


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
    own = run.dataset(store)
    dataset = own if data is None else Dataset.find(store, data)
    _require_same_kind(own, dataset)
    classifier = load_classifier(run, own)
    images = dataset.split(split)
    logits = predict_shard(classifier, images, torch.device("cpu"))
    evaluation = evaluate_logits(
        logits, images.labels, dataset.meta.class_names, dataset=dataset.reference, split=split
    )
    if dataset.meta.digest == own.meta.digest:
        run.write_logits(logits.astype(np.float32), split)
        run.write_evaluation(evaluation, split)
    return evaluation


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
