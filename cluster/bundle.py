"""The bundle: the only thing that travels from training to serving. A folder that checks itself.

    manifest.json         what is in the folder, with the sha256 of every other file
    model.onnx            uint8 images [N, C, H, W] -> float32 logits [N, K]; normalisation inside
    weights.safetensors   the same weights, for warm starts
    golden.safetensors    "images" and the "logits" that PyTorch gave for them
    reference.json        statistics of the training data's held-out split, for drift

Nothing in a bundle is unpickled, and a folder that holds a pickle is refused.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from cluster.atomic import write_json_atomic
from cluster.config import Frozen
from cluster.dataset import ChannelStatistics, file_sha256
from cluster.errors import BundleError, ConfigError
from cluster.images import ImageSpec
from cluster.store import Folder, Store

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.safetensors"
GOLDEN_FILE = "golden.safetensors"
REFERENCE_FILE = "reference.json"
REQUIRED_FILES = (MODEL_FILE, WEIGHTS_FILE, GOLDEN_FILE, REFERENCE_FILE)

INPUT_NAME = "images"
OUTPUT_NAME = "logits"

_PICKLE_SUFFIXES = {
    ".pkl",
    ".pickle",
    ".pt",
    ".pth",
    ".pt2",
    ".bin",
    ".joblib",
    ".npy",
    ".npz",
}
# A pickle of protocol 2 or later, and the zip archive that torch.save writes.
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


class FileEntry(Frozen):
    """Digest and size of one file of the bundle."""

    sha256: str
    bytes: int


class ModelInfo(Frozen):
    """How to build the network again for a warm start."""

    name: str
    options: dict[str, Any]
    parameters: int


class SourceFile(Frozen):
    """A file that something was made from."""

    name: str
    sha256: str


class Lineage(Frozen):
    """Where the weights come from."""

    run: str
    mlflow_run_id: str | None
    dataset: str
    dataset_digest: str
    recipe: str
    seed: int
    commit: str | None
    """The commit of the checkout that trained it, if there was one; ``-dirty`` is appended."""
    libraries: dict[str, str]
    first_weights: SourceFile | None = None
    """The file that the weights were imported from, or that training began with."""


class Parity(Frozen):
    """PyTorch, or an imported graph as it was, against the bundle's graph over the test split."""

    images: int
    labels_equal: bool
    max_abs_diff: float
    """Largest difference between two logits."""


class Manifest(Frozen):
    """What ``manifest.json`` holds."""

    schema_version: Literal[1] = 1
    name: str
    created_at: str
    image: ImageSpec
    class_names: tuple[str, ...]
    normalization: ChannelStatistics
    """For the reader: it is part of the graph already."""
    model: ModelInfo
    lineage: Lineage
    metrics: dict[str, float]
    parity: Parity
    golden_tolerance: float
    """Largest difference of a logit that a replay of the goldens may show."""
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Golden:
    """Inputs with the outputs that PyTorch gave for them."""

    images: npt.NDArray[np.uint8]
    """uint8 ``[n, channels, height, width]``."""
    logits: npt.NDArray[np.float32]
    """float32 ``[n, classes]``."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk. Make one with :meth:`open`."""

    path: Path
    manifest: Manifest
    digest: str
    """sha256 of the manifest, and so of everything it lists."""

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Verify every file of a bundle and read its manifest.

        The goldens are replayed by :func:`cluster.runtime.open_session`, which has an engine.

        Raises:
            BundleError: no manifest, an unknown schema version, a path that leaves the folder, a
                link, a missing, changed, unlisted or pickled file.
        """
        manifest_file = path / MANIFEST_FILE
        try:
            raw = manifest_file.read_bytes()
        except FileNotFoundError:
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST_FILE}") from None
        except OSError as error:
            raise BundleError(f"{manifest_file} cannot be read: {error}") from None
        manifest = decode_manifest(raw, str(manifest_file))
        _check_paths(path, manifest)
        _refuse_pickles_and_strangers(path, manifest)
        _check_digests(path, manifest)
        return cls(path, manifest, hashlib.sha256(raw).hexdigest())

    @property
    def model_bytes(self) -> bytes:
        """The ONNX graph."""
        return (self.path / MODEL_FILE).read_bytes()

    def golden(self) -> Golden:
        """Read the goldens."""
        tensors = safetensors.numpy.load_file(self.path / GOLDEN_FILE)
        return Golden(tensors["images"], tensors["logits"])

    def reference(self) -> dict[str, Any]:
        """Read the reference statistics."""
        values: dict[str, Any] = json.loads((self.path / REFERENCE_FILE).read_text("utf-8"))
        return values


def decode_manifest(raw: bytes, where: str) -> Manifest:
    """Read a manifest.

    Raises:
        BundleError: it is damaged, or of an unknown schema version.
    """
    try:
        values = json.loads(raw)
    except ValueError as error:
        raise BundleError(f"{where} cannot be read: {error}") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: unknown schema version {version}; this Raybridge reads {SCHEMA_VERSION}"
        )
    try:
        return Manifest.decode(values, where)
    except ConfigError as error:
        raise BundleError(str(error)) from None


def bundle_folder(store: Store, digest: str) -> Folder:
    """Where the bundle of that digest is."""
    return store.folder(f"bundles/{digest}")


def find_bundle(store: Store, digest: str) -> Bundle | None:
    """The verified bundle of that digest, copied to this node once, or None if the store has none.

    What lies here and was changed is dropped: the object store, or the registry, has another.

    Raises:
        BundleError: the object store's is damaged.
    """
    folder = bundle_folder(store, digest)
    if (folder.path / MANIFEST_FILE).is_file():
        with contextlib.suppress(BundleError):
            return _open_as(folder.path, digest)
        folder.forget()
    try:
        path = folder.fetch(MANIFEST_FILE, lambda copy: _open_as(copy, digest))
    except FileNotFoundError:
        return None
    return _open_as(path, digest)


def publish_bundle(store: Store, draft: Path) -> Bundle:
    """Make a finished folder the store's bundle of its digest, unless it has that one already.

    Args:
        store: where bundles live.
        draft: a folder on the store's disk, such as :func:`cluster.atomic.drafting` gives; it is
            moved.

    Raises:
        BundleError: it must not be opened.
    """
    bundle = Bundle.open(draft)
    folder = bundle_folder(store, bundle.digest)
    with contextlib.suppress(FileExistsError):
        folder.publish(draft, MANIFEST_FILE)
    return _open_as(folder.fetch(MANIFEST_FILE, Bundle.open), bundle.digest)


def _open_as(path: Path, digest: str) -> Bundle:
    bundle = Bundle.open(path)
    if bundle.digest != digest:
        raise BundleError(f"{path} holds bundle {bundle.digest[:12]}, not {digest[:12]}")
    return bundle


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Digest every file of a draft bundle but the manifest."""
    return {
        name: FileEntry(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size)
        for name in sorted(_names(folder))
        if name != MANIFEST_FILE
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, the last file of a draft bundle."""
    write_json_atomic(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))


def write_golden(folder: Path, golden: Golden) -> None:
    """Write the goldens of a draft bundle."""
    safetensors.numpy.save_file(
        {"images": golden.images, "logits": golden.logits}, folder / GOLDEN_FILE
    )


def _names(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*"):
        if not file.is_dir() or file.is_symlink():
            yield file.relative_to(folder).as_posix()


def _check_paths(path: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
            raise BundleError(f"{path}: {name!r} leads out of the bundle's folder")


def _refuse_pickles_and_strangers(path: Path, manifest: Manifest) -> None:
    for name in sorted(_names(path)):
        file = path / name
        if file.is_symlink():
            raise BundleError(f"{path}: {name} is a link; a bundle holds plain files only")
        with file.open("rb") as opened:
            start = opened.read(4)
        if file.suffix.lower() in _PICKLE_SUFFIXES or start.startswith(_PICKLE_STARTS):
            raise BundleError(
                f"{path}: {name} is a pickle or an archive of pickles, which can run code "
                "when it is loaded; a bundle never holds one"
            )
        if name != MANIFEST_FILE and name not in manifest.files:
            raise BundleError(f"{path}: {name} is not listed in {MANIFEST_FILE}")


def _check_digests(path: Path, manifest: Manifest) -> None:
    for name in REQUIRED_FILES:
        if name not in manifest.files:
            raise BundleError(f"{path}: {MANIFEST_FILE} does not list {name}")
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise BundleError(f"{path}: {name} is missing")
        if file.stat().st_size != entry.bytes or file_sha256(file) != entry.sha256:
            raise BundleError(f"{path}: {name} was changed since the bundle was made")
