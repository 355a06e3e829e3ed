"""A bundle small enough to make in every test: one linear layer over 2x3 pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import safetensors.numpy

from cluster.bundle import (
    GOLDEN_FILE,
    INPUT_NAME,
    MANIFEST_FILE,
    MODEL_FILE,
    OUTPUT_NAME,
    REFERENCE_FILE,
    SCHEMA_VERSION,
    WEIGHTS_FILE,
    Bundle,
    Golden,
    Lineage,
    Manifest,
    ModelInfo,
    Parity,
    list_files,
    write_golden,
    write_manifest,
)
from cluster.dataset import ChannelStatistics
from cluster.images import ImageSpec

IMAGE = ImageSpec(height=2, width=3, channels=1)
CLASS_NAMES = ("dark", "light")
MEAN, STD = 0.5, 0.25


def tiny_weights(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 ``[pixels, classes]``."""
    return np.random.default_rng(seed).normal(size=(6, 2)).astype(np.float32)


def tiny_graph(weights: np.ndarray[Any, np.dtype[np.float32]]) -> onnx.ModelProto:
    """uint8 images -> logits, with normalisation inside, as exported models are."""
    helper = onnx.helper
    constants = {
        "scale": np.float32(1 / (255 * STD)),
        "shift": np.float32(MEAN / STD),
        "flat": np.array([-1, 6], np.int64),
        "weights": weights,
    }
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", [INPUT_NAME], ["float"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Mul", ["float", "scale"], ["scaled"]),
                helper.make_node("Sub", ["scaled", "shift"], ["normal"]),
                helper.make_node("Reshape", ["normal", "flat"], ["rows"]),
                helper.make_node("MatMul", ["rows", "weights"], [OUTPUT_NAME]),
            ],
            "tiny",
            [
                helper.make_tensor_value_info(
                    INPUT_NAME, onnx.TensorProto.UINT8, ["N", *IMAGE.shape]
                )
            ],
            [helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, ["N", 2])],
            [
                onnx.numpy_helper.from_array(np.asarray(value), name)
                for name, value in constants.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def write_bundle(
    folder: Path, *, seed: int = 0, name: str = "tiny", run: str = "tiny-1", **changes: Any
) -> Bundle:
    """Make a bundle and open it.

    Args:
        folder: becomes the bundle.
        seed: of the weights; another one gives another digest.
        name: the model's.
        run: the run that it says it comes from.
        changes: fields of the manifest to set otherwise.
    """
    folder.mkdir(parents=True)
    weights = tiny_weights(seed)
    onnx.save(tiny_graph(weights), folder / MODEL_FILE)
    safetensors.numpy.save_file({"weights": weights}, folder / WEIGHTS_FILE)
    images = np.random.default_rng(1).integers(0, 256, (5, *IMAGE.shape), dtype=np.uint8)
    normal = (images.reshape(5, 6).astype(np.float32) / 255 - MEAN) / STD
    write_golden(folder, Golden(images, (normal @ weights).astype(np.float32)))
    (folder / REFERENCE_FILE).write_text(json.dumps({"images": 5}))
    values: dict[str, Any] = {
        "name": name,
        "created_at": "2026-01-01T00:00:00+00:00",
        "image": IMAGE,
        "class_names": CLASS_NAMES,
        "normalization": ChannelStatistics(mean=(MEAN,), std=(STD,)),
        "model": ModelInfo(name="linear", options={}, parameters=12),
        "lineage": Lineage(
            run=run,
            mlflow_run_id=None,
            dataset="shades@1",
            dataset_digest="0" * 64,
            recipe="tiny",
            seed=seed,
            commit=None,
            libraries={},
        ),
        "metrics": {"test/accuracy": 0.9},
        "parity": Parity(images=5, labels_equal=True, max_abs_diff=1e-6),
        "golden_tolerance": 1e-3,
        "files": list_files(folder),
    }
    write_manifest(folder, Manifest(**{**values, **changes}))
    return Bundle.open(folder)


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Rewrite fields of a manifest as somebody with an editor would."""
    file = folder / MANIFEST_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def relist(folder: Path) -> None:
    """Make the manifest list what is in the folder now: an attacker who knows the format."""
    entries = {key: entry.model_dump() for key, entry in list_files(folder).items()}
    edit_manifest(folder, files=entries)


__all__ = ["GOLDEN_FILE", "SCHEMA_VERSION", "edit_manifest", "relist", "tiny_graph", "write_bundle"]
