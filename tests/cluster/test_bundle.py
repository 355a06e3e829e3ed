"""A bundle opens whole or not at all, and each way of tampering has a message of its own."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from bundles import edit_manifest, relist, write_bundle

from cluster.bundle import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, WEIGHTS_FILE, Bundle
from cluster.errors import BundleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    write_bundle(path)
    return path


def test_opens_and_tells_what_it_holds(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest.class_names == ("dark", "light")
    assert bundle.golden().images.shape == (5, 1, 2, 3)
    assert bundle.golden().logits.dtype == np.float32
    assert bundle.reference() == {"images": 5}
    assert len(bundle.digest) == 64


def test_digest_covers_every_file(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "a", seed=0)
    same = write_bundle(tmp_path / "b", seed=0)
    other = write_bundle(tmp_path / "c", seed=1)
    assert first.digest == same.digest != other.digest


def test_a_changed_byte(folder: Path) -> None:
    file = folder / MODEL_FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx was changed since the bundle was made"):
        Bundle.open(folder)


def test_a_missing_file(folder: Path) -> None:
    (folder / GOLDEN_FILE).unlink()
    with pytest.raises(BundleError, match=r"golden\.safetensors is missing"):
        Bundle.open(folder)


def test_a_required_file_that_is_not_listed(folder: Path) -> None:
    (folder / GOLDEN_FILE).unlink()
    relist(folder)
    with pytest.raises(BundleError, match=r"does not list golden\.safetensors"):
        Bundle.open(folder)


def test_an_unlisted_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"notes\.txt is not listed in manifest\.json"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["extra.pkl", "extra.pt", "extra.npy", "innocent.txt"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_pickle_whatever_its_name(folder: Path, name: str, listed: bool) -> None:
    (folder / name).write_bytes(pickle.dumps({"a": 1}))
    if listed:
        relist(folder)
    with pytest.raises(BundleError, match="is a pickle or an archive of pickles"):
        Bundle.open(folder)


def test_a_pickle_in_a_folder_below(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_bytes(pickle.dumps([1, 2]))
    relist(folder)
    with pytest.raises(BundleError, match="deep/weights is a pickle"):
        Bundle.open(folder)


def test_a_zip_archive_in_the_place_of_the_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"PK\x03\x04" + bytes(60))
    relist(folder)
    with pytest.raises(BundleError, match=r"weights\.safetensors is a pickle or an archive"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["../outside.bin", "a/../../b", "/etc/hostname", "..\\outside"])
def test_a_path_that_leads_out(folder: Path, name: str) -> None:
    files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    edit_manifest(folder, files={**files, name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(BundleError, match="leads out of the bundle's folder"):
        Bundle.open(folder)


@pytest.mark.parametrize("target", ["/etc/hostname", "model.onnx", "/nowhere"])
def test_a_link(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    with pytest.raises(BundleError, match="link is a link; a bundle holds plain files only"):
        Bundle.open(folder)


def test_a_link_to_a_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "assets").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="assets is a link"):
        Bundle.open(folder)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_an_unknown_schema_version(folder: Path, version: object) -> None:
    edit_manifest(folder, schema_version=version)
    with pytest.raises(BundleError, match=r"unknown schema version .*this Raybridge reads 1"):
        Bundle.open(folder)


def test_a_field_that_the_schema_does_not_know(folder: Path) -> None:
    edit_manifest(folder, golden_tolerence=1.0)
    with pytest.raises(BundleError, match="did you mean golden_tolerance"):
        Bundle.open(folder)


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("text", ["", "not json", "[]"])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(folder)
