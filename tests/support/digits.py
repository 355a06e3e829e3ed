"""Digits, gone once for the whole test session by the real code: data set, run, bundle."""

from dataclasses import dataclass

import numpy as np
import pytest

from cluster.atomic import drafting
from cluster.bundle import Bundle
from cluster.dataset import (
    SPLITS,
    Dataset,
    Split,
    SplitName,
    content_digest,
    publish_dataset,
    write_meta,
    write_split,
)
from cluster.session import connect
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from train.data.ingest import ingest
from train.data.sources.recognize import read_source
from train.export import export_run
from train.fit import FitOutcome, fit
from train.preparing import prepare
from train.recipes import get_recipe


def write_digits_16(store: Store, digits: Dataset) -> Dataset:
    """Digits at twice their size, 16x16, as version 1 of ``digits16``."""
    image = digits.meta.image.model_copy(update={"height": 16, "width": 16})
    splits: dict[SplitName, Split] = {}
    for name in SPLITS:
        split = digits.split(name)
        pixels = np.kron(split.take(slice(0, None)), np.ones((1, 1, 2, 2), np.uint8))
        splits[name] = Split(pixels, np.array(split.labels))
    with drafting(store.datasets / "digits16", "1") as draft:
        changes = {
            "name": "digits16",
            "image": image,
            "splits": {
                name: write_split(draft, name, split.images, split.labels, 10)
                for name, split in splits.items()
            },
            "digest": content_digest(image, digits.meta.class_names, splits),
        }
        write_meta(draft, digits.meta.model_copy(update=changes))
        return publish_dataset(store, draft)


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry of the session's store."""

    name: str
    version: int
    bundle: Bundle


@pytest.fixture(scope="session")
def digits_dataset(shared_settings: Settings) -> Dataset:
    """Digits in the session's store."""
    source = read_source("digits", root=None, class_names=None)
    return ingest(Store(shared_settings.store), source, "digits")


@pytest.fixture(scope="session")
def digits_fit(ray_session: Settings, digits_dataset: Dataset) -> FitOutcome:
    """The digits recipe, trained by two workers on the session's cluster."""
    config = get_recipe("digits").with_changes(
        {"data": digits_dataset.reference, "resources": {"workers": 2}}, "test"
    )
    store = Store(ray_session.store)
    config, dataset = prepare(config, store)
    with connect(ray_session) as session:
        return fit(config, dataset, store, Tracking(ray_session), session, name="digits-run")


@pytest.fixture(scope="session")
def digits_bundle(digits_fit: FitOutcome, ray_session: Settings) -> RegisteredModel:
    """The run's bundle, as the first version of model ``digits``."""
    bundle = export_run(digits_fit.run, Store(ray_session.store), "digits")
    version = Tracking(ray_session).register(
        "digits", bundle, run_id=digits_fit.run.info().mlflow_run_id
    )
    return RegisteredModel(version.name, version.version, bundle)
