"""A user's mistakes, as the command says them: one line, exit code 2, and nothing is written.

All of them are found before a cluster is asked for: there is none here.
"""

from pathlib import Path

import numpy as np
import pytest
from harness import CliResult, RunCli
from inside import RunInside
from pictures import write_class_folders

from cluster.atomic import drafting
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
from cluster.settings import Settings
from cluster.store import Store

OWN_NETWORK = """
from torch import nn

def build(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""

CONFIG = {
    "a schedule longer than training": (
        "--set schedule.epochs=99",
        "schedule.epochs 99 is longer than the training of 60 epochs",
    ),
    "steps after the end": (
        "--set schedule.name=step --set schedule.milestones=[30,70]",
        "schedule.milestones: the rate would fall after epoch 70; the training ends after 60",
    ),
    "two ways to say when the rate falls": (
        "--set schedule.name=step --set schedule.milestones=[30] --set schedule.every=20",
        "step takes either every or milestones",
    ),
    "more workers than shards": (
        "--exact --workers 8",
        "8 workers cannot share 4 shards of a batch; set exact.shards to 8 or more",
    ),
    "more workers than images": (
        "--set batch_size=2 --workers 3",
        "batch_size 2 is too small for 3 workers",
    ),
    "more at least than at most": ("--workers 3:2", "--workers 3:2: expected a number such as 2"),
    "no number of workers": ("--workers x", "--workers x: expected a number such as 2, or MIN:MAX"),
    "classes balanced twice": (
        "--set sampling=balanced --set loss.class_weights=balanced",
        "sampling=balanced and loss.class_weights=balanced would count small classes twice over",
    ),
    "a layer that would be trained after the end": (
        "--set freeze=[{layers='conv1',until=60}]",
        "freeze.0.until: conv1 would be trained after epoch 60; the training ends after 60",
    ),
    "gradient descent and sampling": (
        "--set optim.name=gd --set sampling=balanced",
        "optim.name=gd takes every image once a step; sampling must be shuffle",
    ),
    "nesterov without momentum": (
        "--set optim.name=sgd --set optim.momentum=0",
        "nesterov needs a momentum above 0; set optim.nesterov=false",
    ),
    "a share of blending below none": ("--set augment.mixup=-1", "augment.mixup=-1"),
    "an unknown loss": ("--set loss.name=hinge", "'cross_entropy', 'mse', 'focal'"),
}
PREPARED = {
    "training images of one class": (
        "--data lonely",
        "the training split of lonely@1 has images of one class only (cat)",
    ),
    "a batch larger than the data": (
        "--set batch_size=2000",
        "batch_size=2000 is larger than the training split of 1259 images",
    ),
    "an unknown layer": (
        '--set freeze=[{layers="conv3"}]',
        "freeze: the network has no layer 'conv3'; near it are: conv2, conv1",
    ),
    "nothing to train": ('--set freeze=[{layers="*"}]', "freeze: * leaves nothing to train"),
    "a factory of other classes": (
        "--model {folder}/own.py:build",
        "own.py:build gives [2, 3] for 2 images; the data set has 10 classes",
    ),
    "weights of other classes": (
        "--set loss.class_weights=[1,2,3]",
        "loss.class_weights has 3 numbers; the data set has 10 classes",
    ),
    "a shift off the image": (
        "--set augment.translate=8",
        "augment.translate=8: at most 7 for images of 8x8 pixels",
    ),
    "widths that nothing is known of": (
        "--model resnet18 --set lr_scale=width",
        "lr_scale=width needs a network with default widths to compare with",
    ),
    "an unknown model": ("--pretrained registry:unknown", "no model 'unknown' in the registry"),
    "no such data": ("--data digts", "no data set 'digts'"),
}


@pytest.fixture
def place(
    store: Store,
    settings: Settings,
    digits_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A store with digits and a data set of one class, and a network of the user's beside it."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    # Whoever asks for a cluster is told that nothing answers there, and not what is expected here.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    store.datasets.mkdir(parents=True)
    (store.datasets / "digits").symlink_to(digits_dataset.path.parent)
    write_lonely(store, digits_dataset)
    (tmp_path / "own.py").write_text(OWN_NETWORK)
    return tmp_path


def write_lonely(store: Store, digits: Dataset) -> None:
    """``lonely``: two classes, and training images of the first one only."""
    splits: dict[SplitName, Split] = {
        name: Split(digits.split(name).take(slice(0, 70)), np.zeros(70, np.int64))
        for name in SPLITS
    }
    with drafting(store.datasets / "lonely", "1") as draft:
        infos = {
            name: write_split(draft, name, split.images, split.labels, 2)
            for name, split in splits.items()
        }
        names = ("cat", "dog")
        digest = content_digest(digits.meta.image, names, splits)
        changes = {"name": "lonely", "class_names": names, "splits": infos, "digest": digest}
        write_meta(draft, digits.meta.model_copy(update=changes))
        publish_dataset(store, draft)


def is_one_line(done: CliResult, message: str) -> None:
    assert done.exit_code == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert done.json == {"error": line.removeprefix("error: "), "exit_code": 2}


@pytest.mark.parametrize("case", [*CONFIG, *PREPARED])
def test_a_mistake_is_one_line_and_nothing_is_written(
    place: Path, store: Store, run_inside: RunInside, case: str
) -> None:
    arguments, message = {**CONFIG, **PREPARED}[case]
    words = arguments.replace("{folder}", str(place)).split()
    is_one_line(run_inside("train", "fit", "digits", *words, "--json"), message)
    assert not store.runs.exists() or not any(store.runs.iterdir())
    assert not any(one.name.startswith(".") for one in store.datasets.rglob("*"))


def test_one_folder_is_not_enough_of_classes(
    place: Path, store: Store, run_inside: RunInside
) -> None:
    folder = write_class_folders(place / "photos", ("cat",))
    done = run_inside("train", "ingest", str(folder), "--name", "cats", "--json")
    is_one_line(done, "has one class; a classifier needs two or more")
    assert not (store.datasets / "cats").exists()


@pytest.mark.parametrize("case", ["training images of one class", "an unknown layer"])
def test_a_process_of_its_own_says_no_more(place: Path, run_cli: RunCli, case: str) -> None:
    arguments, message = PREPARED[case]
    is_one_line(run_cli("train", "fit", "digits", *arguments.split(), "--json"), message)
