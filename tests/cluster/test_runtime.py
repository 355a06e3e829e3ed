"""Sessions give the answers that the model was exported with, or do not open."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import pytest
from bundles import relist, write_bundle
from harness import ROOT

from cluster.bundle import MODEL_FILE, Bundle, Golden, write_golden
from cluster.errors import BundleError, ConfigError
from cluster.runtime import SESSIONS, Engine, open_session, softmax

ENGINES: list[Engine] = ["onnxruntime", "openvino"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    name: Engine = request.param
    if name == "openvino":
        pytest.importorskip("openvino")
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    write_bundle(path)
    return path


def test_answers_are_the_goldens(folder: Path, engine: Engine) -> None:
    bundle = Bundle.open(folder)
    golden = bundle.golden()
    session = open_session(bundle, engine=engine)
    np.testing.assert_allclose(session.run(golden.images), golden.logits, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 33])
def test_any_batch_size(folder: Path, engine: Engine, size: int) -> None:
    session = open_session(Bundle.open(folder), engine=engine)
    images = np.full((size, 1, 2, 3), 7, np.uint8)
    logits = session.run(images)
    assert logits.shape == (size, 2)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, np.repeat(logits[:1], size, axis=0), atol=1e-5)


def test_threads_do_not_mix_answers(folder: Path, engine: Engine) -> None:
    session = open_session(Bundle.open(folder), engine=engine)
    images = [np.full((1, 1, 2, 3), value, np.uint8) for value in range(0, 256, 8)]
    alone = [session.run(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(session.run, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def _shift(logits: np.ndarray) -> np.ndarray:
    return logits + np.float32(0.1)


def _swap(logits: np.ndarray) -> np.ndarray:
    return logits[:, ::-1].copy()


def _spoil(logits: np.ndarray) -> np.ndarray:
    return np.full_like(logits, np.nan)


@pytest.mark.parametrize("change", [_shift, _swap, _spoil])
def test_other_goldens_are_refused(
    folder: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    golden = Bundle.open(folder).golden()
    write_golden(folder, Golden(golden.images, change(golden.logits)))
    relist(folder)
    with pytest.raises(BundleError, match="the goldens differ"):
        open_session(Bundle.open(folder))


def test_external_data_is_refused(folder: Path) -> None:
    model = onnx.load(folder / MODEL_FILE)
    tensor = next(entry for entry in model.graph.initializer if entry.name == "weights")
    onnx.external_data_helper.set_external_data(tensor, location="/etc/hostname")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    relist(folder)
    with pytest.raises(BundleError, match="reads tensor weights from another file"):
        open_session(Bundle.open(folder))


def test_a_graph_that_is_none(folder: Path) -> None:
    (folder / MODEL_FILE).write_bytes(b"\xff" * 100)
    relist(folder)
    with pytest.raises(BundleError, match="is not ONNX"):
        open_session(Bundle.open(folder))


def test_a_graph_that_does_not_load(folder: Path) -> None:
    model = onnx.load(folder / MODEL_FILE)
    model.graph.node[0].op_type = "NoSuchOperator"
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    relist(folder)
    with pytest.raises(BundleError, match=r"model\.onnx does not load"):
        open_session(Bundle.open(folder))


def test_an_engine_that_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 'raybridge\[openvino\]'"):
        open_session(Bundle.open(folder), engine="openvino")


def test_engines_are_named_as_the_type_says() -> None:
    assert list(SESSIONS) == ENGINES


def test_softmax() -> None:
    logits = np.array([[1000.0, 1000.0], [0.0, np.log(3.0)]], np.float32)
    np.testing.assert_allclose(softmax(logits), [[0.5, 0.5], [0.25, 0.75]], atol=1e-6)


def test_opening_a_session_leaves_the_home_folder_alone(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys; from pathlib import Path; from cluster.bundle import Bundle; "
        "from cluster.runtime import open_session; open_session(Bundle.open(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert done.stdout == done.stderr == b""
    assert list(home.iterdir()) == []
