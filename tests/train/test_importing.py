"""Models that were trained elsewhere become runs and bundles: the article's `model.pth` first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
import torch
from digits import write_digits_16
from safetensors.torch import save_file
from torch import nn

from cluster.bundle import Bundle
from cluster.dataset import ChannelStatistics, Dataset
from cluster.errors import NotFoundError, UserError
from cluster.runtime import open_session, softmax
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from train.evaluate import evaluate_run
from train.export import export_run
from train.fit import FitOutcome, resume
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


def take_in(
    file: Path, settings: Settings, name: str | None = None, **request: Any
) -> tuple[FitOutcome, Bundle]:
    store = Store(settings.store)
    prepared = prepare_import(file, ImportRequest("digits16", **request), store, name)
    outcome = import_model(prepared, store, Tracking(settings), name)
    return outcome, export_run(outcome.run, store, "digits")


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
    save_file(values, file / "model.safetensors")
    return file / "model.safetensors"


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


def graph(
    *,
    batch: int | str = 1,
    kind: int = onnx.TensorProto.FLOAT,
    names: tuple[str, str] = ("images", "logits"),
    last: str | None = None,
    classes: int = 10,
    rows: list[int] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A linear classifier of 16x16 pixels whose batch torch.export has fixed."""
    helper = onnx.helper
    weights = np.random.default_rng(0).normal(size=(256, classes)).astype(np.float32) / 256
    nodes = [helper.make_node("Reshape", [names[0], "shape"], ["rows"], allowzero=1)]
    if kind == onnx.TensorProto.UINT8:
        nodes = [
            helper.make_node("Cast", [names[0]], ["float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Reshape", ["float", "shape"], ["rows"], allowzero=1),
        ]
    nodes.append(helper.make_node("MatMul", ["rows", "fc.weight"], ["sums" if last else names[1]]))
    if last:
        nodes.append(helper.make_node(last, ["sums"], [names[1]]))
    make = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            nodes,
            "theirs",
            [make(names[0], kind, [batch, 1, 16, 16])],
            [make(names[1], onnx.TensorProto.FLOAT, [batch, classes])],
            [
                onnx.numpy_helper.from_array(weights, "fc.weight"),
                onnx.numpy_helper.from_array(
                    np.array(rows or [batch if isinstance(batch, int) else -1, 256]), "shape"
                ),
            ],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def over_the_batch() -> onnx.ModelProto:
    """A graph whose answer for an image depends on the others."""
    model = graph(last="Softmax")
    model.graph.node[-1].attribute.append(onnx.helper.make_attribute("axis", 0))
    return model


@pytest.mark.parametrize(
    ("fields", "normalize", "output"),
    [
        ({}, "half", "logits"),
        ({"batch": 4, "names": ("x", "y")}, "mean=0.3;std=0.2", "logits"),
        ({"batch": "n", "last": "Softmax"}, "none", "probabilities"),
        ({"kind": onnx.TensorProto.UINT8}, "auto", "logits"),
    ],
)
def test_foreign_graphs_take_bytes_and_any_batch(
    dataset: Dataset,
    settings: Settings,
    tmp_path: Path,
    fields: dict[str, Any],
    normalize: str,
    output: str,
) -> None:
    # With its weights in a file of their own, as torch.onnx.export leaves them.
    onnx.save(
        graph(**fields),
        tmp_path / "theirs.onnx",
        save_as_external_data=True,
        size_threshold=0,
        location="theirs.onnx.data",
    )
    outcome, bundle = take_in(
        tmp_path / "theirs.onnx", settings, "theirs", normalize=normalize, output=output
    )
    assert bundle.manifest.parity.labels_equal
    assert bundle.manifest.parity.max_abs_diff < 1e-5
    assert bundle.manifest.model.parameters == 2560
    images = dataset.split("test").take(slice(0, 5))
    mean, std = bundle.manifest.normalization.mean[0], bundle.manifest.normalization.std[0]
    weights = onnx.numpy_helper.to_array(graph(**fields).graph.initializer[0])
    expected = ((images / 255 - mean) / std).reshape(5, 256).astype(np.float32) @ weights
    got = open_session(bundle).run(images)
    assert np.allclose(softmax(got), softmax(expected), atol=1e-5)
    for file in tmp_path.glob("theirs.onnx*"):
        file.unlink()
    assert evaluate_run(outcome.run, Store(settings.store), "test") == outcome.evaluation


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (graph(), {"model": "net"}, r"says itself what the model is; leave --model out"),
        (graph(last="Softmax"), {}, r"gives probabilities .*--output probabilities"),
        (graph(), {"output": "probabilities"}, r"does not give probabilities"),
        (graph(classes=7), {}, r"has the outputs logits \[1, 7\]; one of .*\[batch, 10\]"),
        (graph(kind=onnx.TensorProto.INT64), {}, r"input images is INT64; FLOAT and UINT8"),
        (graph(kind=onnx.TensorProto.UINT8), {"normalize": "half"}, r"--normalize bytes"),
        (graph(opset=8), {}, r"is of ONNX opset 8; 9 or later"),
        (graph(rows=[1, 1, 256]), {}, r"theirs.onnx gives \[2, 1, 10\] for 2 images"),
        (
            over_the_batch(),
            {"normalize": "none"},
            r"any size \(its own is fixed at 1\): an image's",
        ),
    ],
)
def test_graphs_that_do_not_fit_are_refused(
    dataset: Dataset,
    settings: Settings,
    tmp_path: Path,
    model: onnx.ModelProto,
    fields: dict[str, Any],
    message: str,
) -> None:
    onnx.save(model, tmp_path / "theirs.onnx")
    request = ImportRequest("digits16", **fields)
    with pytest.raises(UserError, match=message):
        prepare_import(tmp_path / "theirs.onnx", request, Store(settings.store))


def test_a_file_that_is_no_graph_is_refused(
    dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "theirs.onnx").write_text("hello")
    with pytest.raises(UserError, match=r"theirs.onnx cannot be read as ONNX"):
        prepare_import(tmp_path / "theirs.onnx", ImportRequest("digits16"), Store(settings.store))
