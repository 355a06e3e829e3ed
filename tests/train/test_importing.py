"""Models that were trained elsewhere become runs and bundles: the article's `model.pth` first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digits import write_digits_16
from safetensors.torch import save_file
from torch import nn

from cluster.dataset import ChannelStatistics, Dataset
from cluster.errors import NotFoundError, UserError
from cluster.runtime import open_session
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from train.evaluate import evaluate_run
from train.export import export_run
from train.fit import resume
from train.importing import ImportRequest, import_model, prepare_import

ARTICLE = """
import torch
import torch.nn as nn

class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 6 * 6, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = self.conv1(x)
        x = nn.functional.relu(x)
        x = self.conv2(x)
        x = nn.functional.relu(x)
        x = nn.functional.max_pool2d(x, 2)
        x = torch.flatten(x, 1)
        x = self.fc1(x)
        x = nn.functional.relu(x)
        x = self.fc2(x)
        return x
"""


@pytest.fixture(scope="module")
def trained(digits_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The article's file and, trained for a moment on pixels from -1 to 1, its `model.pth`."""
    folder = tmp_path_factory.mktemp("article")
    (folder / "article.py").write_text(ARTICLE)
    space: dict[str, Any] = {}
    exec(ARTICLE, space)
    split = digits_dataset.split("train")
    pixels = np.kron(split.take(slice(0, None)), np.ones((1, 1, 2, 2), np.uint8))
    images = torch.from_numpy(pixels).float() / 127.5 - 1
    labels = torch.from_numpy(split.labels.copy())
    torch.manual_seed(0)
    net = space["Net"]()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(3):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    torch.save(net.state_dict(), folder / "model.pth")
    return folder


@pytest.fixture
def dataset(store: Store, digits_dataset: Dataset) -> Dataset:
    """Digits of 16x16 pixels, the size that the article's Net is made for."""
    return write_digits_16(store, digits_dataset)


def test_the_articles_weights_become_a_run_and_a_checked_bundle(
    trained: Path, dataset: Dataset, settings: Settings
) -> None:
    said: list[str] = []
    store = Store(settings.store)
    request = ImportRequest("digits16", model=f"{trained}/article.py:Net")
    prepared = prepare_import(trained / "model.pth", request, store, "theirs", said.append)
    assert said[0].startswith("--normalize half has the lowest loss")
    outcome = import_model(prepared, store, Tracking(settings), "theirs")
    assert outcome.evaluation.accuracy > 0.85
    assert outcome.run.report_file.is_file()
    (record,) = Tracking(settings).runs()
    assert (record.name, record.status) == ("theirs", "FINISHED")

    (trained / "article.py").rename(trained / "gone.py")
    try:
        bundle = export_run(outcome.run, store, "digits")
        assert evaluate_run(outcome.run, store, "test") == outcome.evaluation
    finally:
        (trained / "gone.py").rename(trained / "article.py")
    manifest = bundle.manifest
    assert manifest.normalization == ChannelStatistics(mean=(0.5,), std=(0.5,))
    assert manifest.parity.images == 359
    assert manifest.lineage.recipe == "import"
    assert manifest.lineage.first_weights is not None
    assert manifest.lineage.first_weights.name == "model.pth"
    assert manifest.model.options["path"] == "article.py"
    assert not list(bundle.path.rglob("*.py"))
    images = dataset.split("test").take(slice(0, 50))
    space: dict[str, Any] = {}
    exec(ARTICLE, space)
    theirs = space["Net"]()
    theirs.load_state_dict(torch.load(trained / "model.pth", weights_only=True))
    expected = theirs(torch.from_numpy(images.copy()).float() / 127.5 - 1)
    got = open_session(bundle).run(images)
    assert np.allclose(got, expected.detach().numpy(), atol=1e-4)
    with pytest.raises(NotFoundError, match=r"theirs was imported.*--pretrained"):
        resume(outcome.run, store, Tracking(settings), None, epochs=3)  # type: ignore[arg-type]


def wrap(values: dict[str, Any], file: Path) -> Path:
    path = file / "wrapped.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in values.items()}}, path)
    return path


def as_safetensors(values: dict[str, Any], file: Path) -> Path:
    save_file(values, file / "MODEL.SAFETENSORS")
    return file / "MODEL.SAFETENSORS"


@pytest.mark.parametrize("save", [wrap, as_safetensors])
def test_other_forms_of_the_same_weights(
    trained: Path,
    dataset: Dataset,
    settings: Settings,
    tmp_path: Path,
    save: Callable[[dict[str, Any], Path], Path],
) -> None:
    file = save(torch.load(trained / "model.pth", weights_only=True), tmp_path)
    request = ImportRequest("digits16", model="net", normalize="mean=0.5;std=0.5")
    prepared = prepare_import(file, request, Store(settings.store))
    plain = prepare_import(trained / "model.pth", request, Store(settings.store))
    images = torch.from_numpy(dataset.split("test").take(slice(0, 9)).copy())
    assert torch.equal(prepared.classifier(images), plain.classifier(images))


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("unpickled",))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_files_that_would_run_code_are_refused_with_the_remedy(
    dataset: Dataset, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request, store = ImportRequest("digits16", model="net"), Store(settings.store)
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"holds more than weights \(torch.*state_dict"):
        prepare_import(tmp_path / "whole.pth", request, store)
    torch.save({"x": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="would run code"):
        prepare_import(tmp_path / "evil.pth", request, store)
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match=r"script.pt is a TorchScript program.*torch.onnx.export"):
        prepare_import(tmp_path / "script.pt", request, store)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("none.pth", {"model": "net"}, r"none.pth does not exist"),
        ("model.pth", {}, r"holds weights, not the network; name it: --model"),
        ("model.pth", {"model": "resnet"}, r"has no tensor stem.weight"),
        ("model.pth", {"model": "net", "normalize": "full"}, r"--normalize full: allowed are auto"),
        ("model.pth", {"model": "net", "normalize": "mean=1"}, r"expected 'mean=0.5,0.5,0.5;std="),
        ("model.pth", {"model": "net", "normalize": "mean=1;std=0"}, r"deviation must be above 0"),
        ("model.pth", {"model": "net", "output": "probabilities"}, r"networks of net give logits"),
        (
            "model.pth",
            {"model": "net", "changes": {"model": {"depth": 3}}},
            r"no field model.depth",
        ),
        (
            "model.pth",
            {"model": "net", "changes": {"normalize": "half"}},
            r"--set normalize: only model... can be set here; say it with --normalize",
        ),
        ("model.pth", {"model": "net", "changes": {"epochs": 3}}, r"an import trains none"),
        ("model.pth", {"model": "net", "changes": {"model": "net"}}, r"is named by --model"),
    ],
)
def test_a_mistake_is_one_line(
    trained: Path,
    dataset: Dataset,
    settings: Settings,
    file: str,
    fields: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        prepare_import(trained / file, ImportRequest("digits16", **fields), Store(settings.store))


OWN = """
import torch.nn.functional as F
from torch import nn

class Tied(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a = nn.Linear(256, num_classes)
        self.b = self.a

    def forward(self, x):
        return self.b(x.flatten(1))

class Value(Tied):
    def forward(self, x):
        y = self.a(x.flatten(1))
        return y * 2 if y.sum().item() > 0 else y

class Random(Tied):
    def forward(self, x):
        return F.dropout(self.a(x.flatten(1)))
"""


def save_own(folder: Path, *, bias: float = 0.0) -> Path:
    (folder / "own.py").write_text(OWN)
    layer = {"weight": torch.randn(10, 256), "bias": torch.full((10,), bias)}
    values = {f"{name}.{key}": one for name in "ab" for key, one in layer.items()}
    torch.save(values, folder / "own.pth")
    return folder / "own.pth"


def test_tied_weights_are_exported(dataset: Dataset, settings: Settings, tmp_path: Path) -> None:
    file, store = save_own(tmp_path), Store(settings.store)
    request = ImportRequest("digits16", model=f"{tmp_path}/own.py:Tied", normalize="none")
    outcome = import_model(prepare_import(file, request, store), store, Tracking(settings))
    bundle = export_run(outcome.run, store, "digits")
    assert bundle.manifest.parity.labels_equal


@pytest.mark.parametrize(
    ("factory", "bias", "message"),
    [
        ("Value", 0.0, r"own.py:Value cannot be exported to ONNX: own.py:17 in forward: \w+"),
        ("Random", 0.0, r"own.py:Random: its ONNX graph and the network differ by"),
        ("Tied", float("nan"), r"not finite: its tensor a.bias holds NaN"),
        ("Tied", float("inf"), r"own.py:Tied gives numbers that are not finite"),
    ],
)
def test_what_could_not_be_exported_is_found_out_before_anything_is_written(
    dataset: Dataset, settings: Settings, tmp_path: Path, factory: str, bias: float, message: str
) -> None:
    file = save_own(tmp_path, bias=bias)
    request = ImportRequest("digits16", model=f"{tmp_path}/own.py:{factory}", normalize="none")
    with pytest.raises(UserError, match=message) as caught:
        prepare_import(file, request, Store(settings.store))
    assert "\n" not in str(caught.value)
