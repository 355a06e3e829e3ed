"""Foreign ONNX graphs become runs and bundles, whatever their names, types and batch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from digits import write_digits_16

from cluster.bundle import Bundle
from cluster.dataset import Dataset
from cluster.errors import UserError
from cluster.runtime import open_session, softmax
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from train.evaluate import evaluate_run
from train.export import export_run
from train.fit import FitOutcome
from train.importing import ImportRequest, import_model, prepare_import


@pytest.fixture
def dataset(store: Store, digits_dataset: Dataset) -> Dataset:
    """Digits of 16x16 pixels."""
    return write_digits_16(store, digits_dataset)


def take_in(
    file: Path, settings: Settings, name: str | None = None, **request: Any
) -> tuple[FitOutcome, Bundle]:
    store = Store(settings.store)
    prepared = prepare_import(file, ImportRequest("digits16", **request), store, name)
    outcome = import_model(prepared, store, Tracking(settings), name)
    return outcome, export_run(outcome.run, store, "digits")


def graph(
    *,
    batch: int | str = 1,
    kind: int = onnx.TensorProto.FLOAT,
    names: tuple[str, str] = ("images", "logits"),
    last: str | None = None,
    classes: int = 10,
    rows: list[int] | None = None,
    opset: int = 17,
    weight: str = "fc.weight",
    shape: str = "shape",
) -> onnx.ModelProto:
    """A linear classifier of 16x16 pixels whose batch torch.export has fixed."""
    helper = onnx.helper
    weights = np.random.default_rng(0).normal(size=(256, classes)).astype(np.float32) / 256
    nodes = [helper.make_node("Reshape", [names[0], shape], ["rows"], allowzero=1)]
    if kind == onnx.TensorProto.UINT8:
        nodes = [
            helper.make_node("Cast", [names[0]], ["float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Reshape", ["float", shape], ["rows"], allowzero=1),
        ]
    nodes.append(helper.make_node("MatMul", ["rows", weight], ["sums" if last else names[1]]))
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
                onnx.numpy_helper.from_array(weights, weight),
                onnx.numpy_helper.from_array(
                    np.array(rows or [batch if isinstance(batch, int) else -1, 256]), shape
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
        # What a module's own attributes are called.
        ({"weight": "type", "shape": "graph"}, "none", "logits"),
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
        tmp_path / "theirs.ONNX",
        save_as_external_data=True,
        size_threshold=0,
        location="theirs.ONNX.data",
    )
    outcome, bundle = take_in(
        tmp_path / "theirs.ONNX", settings, "theirs", normalize=normalize, output=output
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
    for file in tmp_path.glob("theirs.ONNX*"):
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


def test_tensors_of_a_graph_are_kept_apart(
    dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    model = graph(weight="a.b")
    extra = onnx.numpy_helper.from_array(np.ones(10, np.float32), "a/b")
    model.graph.initializer.append(extra)
    onnx.save(model, tmp_path / "theirs.onnx")
    request = ImportRequest("digits16", normalize="none")
    prepared = prepare_import(tmp_path / "theirs.onnx", request, Store(settings.store))
    sizes = [one.numel() for one in prepared.classifier.net.parameters()]
    assert sizes == [2560, 10]


def test_a_file_that_is_no_graph_is_refused(
    dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "theirs.onnx").write_text("hello")
    with pytest.raises(UserError, match=r"theirs.onnx cannot be read as ONNX"):
        prepare_import(tmp_path / "theirs.onnx", ImportRequest("digits16"), Store(settings.store))
