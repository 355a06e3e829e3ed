"""A run on encoded images, from the first step to the bundle, without a cluster."""

import numpy as np
import pytest
import torch
from photos import make_photo, write_photos

from cluster.bundle import Bundle
from cluster.dataset import Dataset
from cluster.errors import DataError
from cluster.events import NullSink
from cluster.runtime import open_session
from cluster.store import Store
from train.comm import Alone
from train.config import AdamWConfig, AugmentConfig, NetConfig, TrainConfig
from train.evaluate import evaluate_run
from train.export import export_run
from train.loop import Trainer
from train.report import write_report
from train.runs import Run, RunResult, create_run
from train.weights import weights_sha256

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(
    recipe="small",
    data="photos@1",
    epochs=2,
    batch_size=32,
    sampling="balanced",
    model=NetConfig(channels=(8, 16), hidden=32),
    optim=AdamWConfig(lr=1e-2),
    augment=AugmentConfig(random_resized_crop=0.35, flip=True),
)


def write_dataset(store: Store, **changes: object) -> Dataset:
    rows = {"train": 192, "val": 40, "test": 50}
    return write_photos(store.datasets / "photos" / "1", rows, **changes)  # type: ignore[arg-type]


def train(store: Store, dataset: Dataset) -> Run:
    """What `fit` leaves of a run."""
    run = create_run(store, CONFIG, dataset, "photos-run")
    trainer = Trainer(CONFIG, dataset, Alone(), torch.device("cpu"), run.checkpoints, NullSink())
    progress = trainer.run()
    run.write_weights(trainer.net)
    run.write_result(
        RunResult(
            epochs=2,
            steps=progress.step,
            workers=1,
            device="cpu",
            seconds=1.0,
            images_per_s=1.0,
            restarts=0,
            weights_sha256=weights_sha256(trainer.net),
            history=tuple(progress.history),
            failures={},
        )
    )
    return run


def test_encoded_images_are_trained_evaluated_reported_and_exported(store: Store) -> None:
    torch.set_num_threads(1)
    # A red photo that is called blue: at least one mistake to show.
    dataset = write_dataset(store, test_replaced={2: make_photo(0, 1)})
    run = train(store, dataset)
    test = dataset.split("test")
    evaluation = evaluate_run(run, store, "test")
    assert evaluation.images == 50
    assert evaluation.accuracy > 0.9
    bundle = export_run(run, store)
    assert bundle.manifest.parity.images == 50
    assert bundle.manifest.normalization == dataset.meta.normalization
    assert bundle.golden().images.shape == (32, 3, 16, 16)
    # What a server answers for the stored bytes is what the run was evaluated with.
    session = open_session(Bundle.open(bundle.path))
    served = session.run(test.take(slice(None)))
    np.testing.assert_allclose(served, run.logits("test"), atol=1e-4)
    mistakes = round(50 * (1 - evaluation.accuracy))
    page = write_report(run, dataset).read_text("utf-8")
    assert page.count("data:image/png;base64,") == mistakes >= 1


def test_a_damaged_image_ends_the_run_with_one_clear_error(store: Store) -> None:
    dataset = write_dataset(store, train_replaced={100: b"GIF89a, cut off"})
    with pytest.raises(DataError, match=r"^\S*/train-\d{5}\.arrow: row \d+: [^\n]*$"):
        train(store, dataset)


def test_a_lost_file_is_found_before_a_run_begins(store: Store) -> None:
    dataset = write_dataset(store)
    (dataset.path / "train-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"train-00001\.arrow cannot be read"):
        Dataset.find(store, "photos")
