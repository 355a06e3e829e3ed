"""A store in an object store: what one host publishes another finds, whole or not at all."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle
from datasets import write_dataset
from harness import ROOT
from servers import S3Server, s3_server

import cluster.remote
from cluster.bundle import find_bundle, publish_bundle
from cluster.dataset import Dataset, dataset_names, dataset_versions
from cluster.errors import BundleError, ConfigError, DataError, NotFoundError, StoreError
from cluster.remote import Remote
from cluster.settings import Settings
from cluster.store import Store

MARKER = "meta.json"


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """A place in the bucket of this test's own."""
    return f"raybridge/{tmp_path.name}"


@pytest.fixture
def uri(s3: S3Server, prefix: str) -> str:
    return s3.uri(prefix)


@pytest.fixture
def here(uri: str, tmp_path: Path) -> Store:
    """The store, as one host sees it."""
    return Store(tmp_path / "here", Remote(uri))


@pytest.fixture
def there(uri: str, tmp_path: Path) -> Store:
    """The store, as another host sees it."""
    return Store(tmp_path / "there", Remote(uri))


def test_objects(here: Store, s3: S3Server, prefix: str, tmp_path: Path) -> None:
    remote = here.remote
    assert remote is not None
    assert remote.list("a") == ([], [])
    remote.write("a/x", b"1")
    remote.write("a/x", b"2")
    (tmp_path / "y").write_bytes(bytes(range(256)) * 40_000)
    remote.put(tmp_path / "y", "a/b/y")
    assert s3.names(prefix) == {"a/x", "a/b/y"}
    assert (remote.read("a/x"), remote.read("a/z")) == (b"2", None)
    assert (remote.has("a/x"), remote.has("a/b"), remote.has("a/z")) == (True, False, False)
    assert remote.list("a") == (["x"], ["b"])
    assert remote.list("a", recursive=True)[0] == ["b/y", "x"]
    remote.get("a/b/y", tmp_path / "deep" / "y")
    assert (tmp_path / "deep" / "y").read_bytes() == (tmp_path / "y").read_bytes()
    with pytest.raises(FileNotFoundError):
        remote.get("a/z", tmp_path / "deep" / "z")
    assert [one.name for one in (tmp_path / "deep").iterdir()] == ["y"]
    remote.delete("a/x")
    remote.delete("a/x")
    assert remote.list("a") == ([], ["b"])


def test_a_data_set_goes_from_host_to_host_once(
    here: Store, there: Store, s3: S3Server, prefix: str
) -> None:
    written = write_dataset(here)
    assert written.reference == "pets@1"
    found = Dataset.find(there, "pets")
    assert found.meta == written.meta
    assert np.array_equal(found.split("test").labels, written.split("test").labels)
    assert found.path.is_relative_to(there.root)
    # Nothing but its description is read again, whatever it is called.
    s3.files().delete_file(f"{prefix}/datasets/pets/1/train.arrow")
    assert Dataset.find(there, "pets@1").path == found.path
    other = write_dataset(here, name="animals")
    again = Dataset.find(there, "animals")
    assert (
        (again.reference, again.path) == (other.reference, found.path) == ("animals@1", found.path)
    )
    assert sorted(dataset_names(there)) == ["animals", "pets"]
    with pytest.raises(NotFoundError, match=r"no data set 'cars' in s3://.*: animals, pets"):
        Dataset.find(there, "cars")


def test_a_version_exists_when_its_marker_does(
    here: Store, there: Store, s3: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Remote.put

    def interrupted(self: Remote, file: Path, name: str) -> None:
        if name.endswith(MARKER):
            raise KeyboardInterrupt
        put(self, file, name)

    with monkeypatch.context() as patched:
        patched.setattr(Remote, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(here)
    assert any(name.endswith("train.arrow") for name in s3.names(prefix))
    assert dataset_versions(there, "pets") == []
    assert not here.dataset_cache.exists()
    write_dataset(here)
    assert dataset_versions(there, "pets") == [1]
    with pytest.raises(FileExistsError, match="datasets/pets/1 exists already"):
        write_dataset(here)


def test_a_damaged_download_is_not_kept(
    here: Store, there: Store, s3: S3Server, prefix: str
) -> None:
    whole = write_dataset(here)
    file = f"{prefix}/datasets/pets/1/train.arrow"
    content = (whole.path / "train.arrow").read_bytes()
    with s3.files().open_output_stream(file) as stream:
        stream.write(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"train.arrow was changed"):
        Dataset.find(there, "pets")
    assert [one.name for one in there.dataset_cache.iterdir() if "lock" not in one.name] == []
    with s3.files().open_output_stream(file) as stream:
        stream.write(content)
    Dataset.find(there, "pets").verify()


FETCH = """
import sys
from pathlib import Path
from cluster.remote import Remote
from cluster.store import Folder
folder = Folder(Path(sys.argv[2]), Remote(sys.argv[1]), "big")
def check(copy):
    print("copied", flush=True)
input()
print(len(list(folder.fetch("meta.json", check).iterdir())))
"""


def test_two_processes_of_a_host_fetch_once(here: Store, uri: str, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    for name in ("a", "b", MARKER):
        (draft / name).write_bytes(os.urandom(3_000_000))
    here.folder("big").publish(draft, MARKER)
    command = [sys.executable, "-c", FETCH, uri, str(tmp_path / "copy")]
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) for _ in range(2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in both]
    assert sorted(said) == [["3"], ["copied", "3"]]


def test_what_a_dead_download_left_is_removed(here: Store, there: Store, tmp_path: Path) -> None:
    write_dataset(here)
    digest = Dataset.find(here, "pets").meta.digest
    left = there.dataset_cache / f".{digest}.0123.draft"
    left.mkdir(parents=True)
    Dataset.find(there, "pets")
    assert not left.exists()


def test_a_bundle_goes_by_its_digest(
    here: Store, there: Store, s3: S3Server, prefix: str, tmp_path: Path
) -> None:
    digest = write_bundle(tmp_path / "made").digest
    assert find_bundle(there, digest) is None
    bundle = publish_bundle(here, tmp_path / "made")
    assert (bundle.digest, bundle.path) == (digest, here.bundles / digest)
    shutil.copytree(bundle.path, tmp_path / "again")
    assert publish_bundle(here, tmp_path / "again") == bundle
    found = find_bundle(there, digest)
    assert found is not None
    (found.path / "model.onnx").write_bytes(b"changed")
    assert find_bundle(there, digest) == found, "a copy that was changed is copied again"
    with s3.files().open_output_stream(f"{prefix}/bundles/{digest}/model.onnx") as stream:
        stream.write(b"changed")
    shutil.rmtree(found.path)
    with pytest.raises(BundleError, match="was changed"):
        find_bundle(there, digest)
    assert not found.path.exists()


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("bucket", ConfigError, r"there is no bucket nowhere; make it, or name another"),
        ("keys", ConfigError, r"refuses access: .*credentials come from its own environment"),
        ("port", StoreError, "does not answer: .*Could not connect"),
        ("silence", StoreError, "does not answer: .*Timeout"),
    ],
)
def test_what_is_wrong_is_said_soon_and_in_one_line(
    what: str,
    error: type[Exception],
    message: str,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster.remote, "REQUEST_TIMEOUT_S", 1)
    uri = s3.uri("nowhere/x" if what == "bucket" else "raybridge/x")
    if what == "port":
        uri = uri.replace(s3.endpoint.rpartition(":")[2], "9")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if what == "silence":
            stack.enter_context(s3.silent())
        if what == "keys":
            strict = stack.enter_context(s3_server(checks_keys=True))
            strict.make_bucket("raybridge")
            uri = strict.uri("raybridge")
        with pytest.raises(error, match=message) as caught:
            Store(tmp_path / "store", Remote(uri)).ensure_writable()
    assert time.monotonic() - began < 15
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/x", r"no store of kind ftp://; give the absolute path.* s3://, gs://"),
        ("s3:///x", "it names no bucket"),
        ("s3://KEY:SECRET@bucket/x", r"s3://...@bucket/x: .*keep keys out of it"),
        ("s3://KEY:SEC?RET@bucket/x", r"s3://...@bucket/x: .*keep keys out of it"),
        ("abfs://box:SECRET@acc.dfs.core.windows.net/x", r"abfs://...@acc.*keep keys out of it"),
        ("abfs://box@acc/x?sas_token=SECRET", "no option sas_token .*allowed: blob_storage_auth"),
        ("abfss://box@acc/x?client_secret=SECRET", "no option client_secret .*enable_tls"),
        ("gs://bucket/x?access_token=SECRET", "no option access_token .*allowed: endpoint_ov"),
        ("s3://bucket/x?endpoint_override=me:SECRET@minio", "keep keys out of it"),
        ("s3://bucket/x?secret_key=SECRET", "no option secret_key .*allowed: .*region, scheme"),
        ("s3://[x", r"RAYBRIDGE_STORE=s3://\[x: Invalid IPv6"),
        ("s3:/bucket/p", "neither a path nor a URI; expected s3://BUCKET/PREFIX"),
        ("file:/data", "neither a path nor a URI; .* file:///PATH"),
        ("file://host/data", "no store of kind file://"),
    ],
)
def test_addresses_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setenv("RAYBRIDGE_STORE", address)
    with pytest.raises(ConfigError, match=message) as caught:
        Settings.from_env()
    assert not re.search("SECRET|SEC|RET@", str(caught.value))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/x?region=eu&scheme=http&endpoint_override=minio.lan%3A9000",
        "gs://bucket/x?scheme=http&endpoint_override=127.0.0.1%3A9&retry_limit_seconds=1",
        "abfs://box@acc.dfs.core.windows.net/x?enable_tls=false&credential_kind=environment",
    ],
)
def test_options_are_those_of_pyarrow(uri: str) -> None:
    import pyarrow.fs as pa_fs

    # Making one connects to nothing, and refuses what it does not know.
    assert pa_fs.FileSystem.from_uri(cluster.remote.check_uri(uri))[1].endswith("/x")


@pytest.mark.parametrize("endpoint", ["minio.lan:9000", "ftp://minio.lan", "http://me:SECRET@lan"])
def test_a_server_that_is_none(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("RAYBRIDGE_STORE", "s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL=.*: expected http://HOST:PORT") as got:
        Settings.from_env()
    assert "SECRET" not in str(got.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "http://host:abc",
            r"MLFLOW_TRACKING_URI=http://host:abc is no address; expected http://H",
        ),
        ("http://[bad", r"MLFLOW_TRACKING_URI=http://\[bad is no address"),
        ("http://:5000", "is no address"),
        ("http://ho st:5000", "is no address"),
        ("http://me:SECRET@host:5000", r"http://...@host:5000: .*MLFLOW_TRACKING_PASSWORD on each"),
        ("http://SECRET@host:5000", "keep the password out of it"),
        ("http://me:SEC/RET@host:5000", r"http://...@host:5000 is no address"),
        ("postgresql://me:SECRET@host/db", r"export MLFLOW_TRACKING_USERNAME .*`mlflow server`"),
    ],
)
def test_tracking_addresses_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=message) as caught:
        Settings.from_env()
    assert not re.search("SECRET|SEC|RET@", str(caught.value))


@pytest.mark.parametrize("tracking", [None, "sqlite:////tmp/mlflow.db", "file:///tmp/mlruns"])
def test_a_registry_on_one_disk_is_refused(
    monkeypatch: pytest.MonkeyPatch, tracking: str | None
) -> None:
    monkeypatch.setenv("RAYBRIDGE_STORE", "s3://bucket/x")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if tracking is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    with pytest.raises(ConfigError, match=r"run `mlflow server .*MLFLOW_TRACKING_URI=http://"):
        Settings.from_env()


def test_an_address_means_the_same_on_every_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYBRIDGE_STORE", "s3://bucket/x/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("RAYBRIDGE_CACHE", str(tmp_path))
    settings = Settings.from_env()
    assert settings.remote == (
        "s3://bucket/x?endpoint_override=127.0.0.1%3A9000&scheme=http&region=eu-central-1"
    )
    assert settings.store.parent == tmp_path / "stores"
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.from_env() == settings
    assert Store.open(settings.address).root == settings.store
