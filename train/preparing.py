"""What is done before a run begins: to find its data, and the mistakes that a worker would make."""

from collections.abc import Callable

import numpy as np
import torch

from cluster.dataset import Dataset
from cluster.errors import DataError
from cluster.registry import Registry
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from train.checkpoint import save_checkpoint
from train.comm import Alone
from train.config import FileConfig, OnnxConfig, SourceConfig, TrainConfig
from train.export import try_export
from train.models.check import check_classifier
from train.models.choice import absolute_path
from train.models.classifier import Classifier, build_classifier
from train.models.file import check_alone, read_source
from train.models.freezing import check_freeze
from train.models.graph import read_graph
from train.models.source import content_sha256
from train.models.whitening import initialize_from_data
from train.pretrained import load_pretrained, pin_pretrained
from train.runs import Run, check_new_run
from train.setup import set_up, split_batch
from train.state import first_checkpoint


def prepare(
    config: TrainConfig,
    store: Store,
    name: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    registry: Callable[[], Registry] | None = None,
) -> tuple[TrainConfig, Dataset]:
    """Find the data set, and make here the mistakes that a worker would make.

    Here they cost a second, and no cluster.

    Args:
        config: what to train, on what.
        store: where data sets and runs live.
        name: of the coming run, if it is given one.
        say: told what is downloaded, and which pretrained weights fit.
        registry: connects to the registry, which first weights may be of; by default that of the
            environment.

    Returns:
        The configuration with the data set's version, absolute paths and the digest of a model's
        file filled in, and the data set.

    Raises:
        UserError: there is no such data set, or model, first weights or batch do not fit it, or a
            run of that name exists.
    """
    if name is not None:
        check_new_run(store, name)
    dataset = Dataset.find(store, config.data)
    changes: dict[str, object] = {"data": dataset.reference}
    registry = registry or open_registry
    if config.pretrained is not None:
        changes["pretrained"] = pin_pretrained(config.pretrained, registry)
    if isinstance(config.model, SourceConfig):
        changes["model"] = pin_source(config.model)
    config = config.with_changes(changes, "fit")
    classifier = check_fit(config, dataset)
    if config.pretrained is not None:
        say(str(load_pretrained(classifier.net, config, dataset.meta, say, registry)))
        check_classifier(classifier, config.model, dataset.meta, training=False)
    return config, dataset


def check_fit(config: TrainConfig, dataset: Dataset) -> Classifier:
    """Build once what every worker will.

    Returns:
        The classifier, whose running averages have seen random images.

    Raises:
        UserError: model, batch, loss or frozen layers do not fit the data set, or a network of the
            user's could be trained but not exported.
    """
    classes = np.flatnonzero(np.bincount(dataset.split("train").labels))
    if len(classes) < 2:
        only = ", ".join(dataset.meta.class_names[label] for label in classes) or "none"
        raise DataError(
            f"the training split of {dataset.reference} has images of one class only ({only}); "
            "there must be two or more"
        )
    # Whether there is a compiler, a worker finds out on its own machine.
    plain = config.hardware.model_copy(update={"compile": False})
    here = config.model_copy(update={"hardware": plain})
    setup = set_up(here, dataset, Alone(), torch.device("cpu"))
    classifier = setup.state.classifier
    check_freeze(classifier.net, config.freeze)
    shares, each = split_batch(config, setup.batch_size, config.resources.workers)
    images = min(2, setup.batch_size // (shares * each))
    check_classifier(classifier, config.model, dataset.meta, training=True, images=images)
    if isinstance(config.model, FileConfig):  # The others are known to export.
        try_export(classifier, config.model, dataset.meta.image.shape)
    return classifier


def pin_source(model: SourceConfig) -> dict[str, object]:
    """Where the model's file is, from every folder, and its digest.

    Raises:
        ConfigError: it cannot be read, or is not all that the model needs.
    """
    path = absolute_path(model.path)
    if isinstance(model, OnnxConfig):
        content = read_graph(path)
    else:
        check_alone(path)
        content = read_source(path)
    return {"path": path, "sha256": content_sha256(content)}


def write_first_weights(run: Run, config: TrainConfig, dataset: Dataset) -> None:
    """Leave pretrained weights where every worker looks for a checkpoint.

    So no worker reads or downloads them, and the file is needed no more.
    """
    classifier = build_classifier(config, dataset.meta)
    initialize_from_data(classifier.net, classifier, dataset.split("train"))
    pretrained = load_pretrained(classifier.net, config, dataset.meta, registry=open_registry)
    save_checkpoint(run.checkpoints, first_checkpoint(config, classifier), config.checkpoint.keep)
    run.write_info(run.info().model_copy(update={"first_weights": pretrained.source}))


def open_registry() -> Registry:
    """The registry that the environment names."""
    return Tracking(Settings.from_env())
