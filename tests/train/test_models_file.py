"""Networks from a file of the user's: what is passed, what is kept, and what a mistake says."""

import json
from pathlib import Path

import pytest
from datasets import CLASS_NAMES, IMAGE, write_dataset
from torch import nn

from cluster.errors import ConfigError
from cluster.store import Store
from train.config import FileConfig, TrainConfig
from train.models.check import check_classifier
from train.models.classifier import build_classifier
from train.models.file import build_from_file
from train.preparing import pin_source
from train.runs import create_run

GOOD = """
from torch import nn

def build(shape, num_classes, width=4):
    channels, height, width_of_image = shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3), nn.Flatten(),
        nn.Linear(width * (height - 2) * (width_of_image - 2), num_classes),
    )

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(45, 2)

    def forward(self, x):
        return self.layer(x.flatten(1))

def five(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(45, 5))
def ends(): return nn.Sequential(nn.Flatten(), nn.Linear(45, 2), nn.Softmax(1))
class Counts(nn.Linear):
    def __init__(self): super().__init__(45, 2)
    def get_extra_state(self): return {"seen": 3}
builtin = int
def gives_list(in_channels): return [in_channels]
def raises(): raise KeyError("no such thing")
def strange(a, b): pass
def leaves(): raise SystemExit("enough")
def broken():
    net = nn.Sequential(nn.Flatten(), nn.Linear(45, 2))
    nn.init.constant_(net[1].bias, float("nan"))
    return net
class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
    def forward(self, x):
        return self.layer(x)
"""


def config(path: Path, factory: str = "build", **options: object) -> TrainConfig:
    model = FileConfig(path=path, factory=factory, options=options)
    return TrainConfig(recipe="test", data="pets@1", model=model)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "user").mkdir()
    file = tmp_path / "user" / "my_net.py"
    file.write_text(GOOD)
    return file


def test_a_factory_gets_what_it_names(source: Path) -> None:
    net = build_from_file(config(source, width=8).model, IMAGE.shape, 2)  # type: ignore[arg-type]
    assert isinstance(net, nn.Sequential)
    assert net[0].out_channels == 8
    net = build_from_file(config(source, "Bare").model, IMAGE.shape, 2)  # type: ignore[arg-type]
    assert type(net).__name__ == "Bare"


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("buld", {}, r"has no function or class 'buld'; near it are: build"),
        ("build", {"depth": 3}, r"my_net.py: build takes no option depth; allowed: width"),
        ("build", {"shape": 3}, r"model.options.shape is decided by the data"),
        ("strange", {"a": 1}, r"strange asks for b; give it with --set model.options.b=VALUE"),
        ("gives_list", {}, r"gives_list gave a list; it must give a torch.nn.Module"),
        ("raises", {}, r"my_net.py:26 in raises: KeyError: 'no such thing'"),
        ("Counts", {}, r"Counts keeps _extra_state, which is no tensor"),
        ("builtin", {}, r"my_net.py: builtin says no parameters; write it as build\("),
        ("leaves", {}, r"my_net.py:28 in leaves: SystemExit: enough"),
        ("broken", {}, r"broken gives numbers that are not finite: its tensor 1.bias holds NaN"),
        ("five", {}, r"gives \[2, 5\] for 2 images; the data set has 2 classes"),
        ("ends", {}, r"gives probabilities .*leave its softmax out"),
        ("Late", {}, r"fails on images of 3x3x5: my_net.py:38 in forward: RuntimeError: mat1"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(
    source: Path, store: Store, factory: str, options: dict[str, object], message: str
) -> None:
    asked, meta = config(source, factory, **options), write_dataset(store).meta
    with pytest.raises(ConfigError, match=message) as caught:
        check_classifier(build_classifier(asked, meta), asked.model, meta, training=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(:\n", r"my_net.py:1: SyntaxError: "),
        ("import torch\n1 / 0\n", r"my_net.py:2 in <module>: ZeroDivisionError"),
        ("import not_there\n", r"my_net.py:1 .*No module named 'not_there'; a model file must"),
        ("import sys\nsys.exit()\n", r"my_net.py:2 in <module>: SystemExit"),
    ],
)
def test_a_file_that_does_not_run_says_where(source: Path, text: str, message: str) -> None:
    source.write_text(text)
    with pytest.raises(ConfigError, match=message):
        build_from_file(config(source).model, IMAGE.shape, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "import helpers\n",
        "from . import x\n",
        "from helpers import x\n",
        "from parts.head import x\n",
        "import typed_from.here\n",
    ],
)
def test_a_file_that_needs_a_neighbour_is_refused_where_both_are(
    source: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Folders of these names hide no package: of data, and the package under development.
    source.write_text(f"import os, torch, train\n{text}")
    for name in ("helpers.py", "parts/head.py", "torch/1.png", "os/1.png"):
        (source.parent / name).parent.mkdir(exist_ok=True)
        (source.parent / name).touch()
    (tmp_path / "typed_from").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # As python -m does.
    model = config(source).model
    assert isinstance(model, FileConfig)
    with pytest.raises(ConfigError, match=r"my_net.py:2 imports a neighbour"):
        pin_source(model)


def test_a_run_keeps_the_file_and_notices_a_change(source: Path, store: Store) -> None:
    dataset, asked = write_dataset(store), config(source, width=3)
    assert isinstance(asked.model, FileConfig)
    asked = asked.with_changes({"model": pin_source(asked.model)}, "test")
    run = create_run(store, asked, dataset, "mine")
    source.unlink()
    kept = run.config()
    assert isinstance(kept.model, FileConfig)
    assert kept.model.path == run.path / "model_source" / "my_net.py"
    assert build_classifier(kept, dataset.meta).net[0].out_channels == 3  # type: ignore[index]
    assert dataset.meta.class_names == CLASS_NAMES
    run.write_config(kept)
    recorded = json.loads((run.path / "config.json").read_text())
    assert recorded["model"]["path"] == "model_source/my_net.py"
    kept.model.path.write_text(GOOD.replace("width=4", "width=5"))
    with pytest.raises(ConfigError, match=r"my_net.py was changed: it is not the file"):
        build_classifier(run.config(), dataset.meta)
