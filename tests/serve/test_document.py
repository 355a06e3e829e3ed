"""Serving documents: what every replica follows, in a folder or in an object store."""

from pathlib import Path

import pytest
from bundles import write_bundle
from servers import S3Server, s3_server

import serve.document
from cluster.bundle import Bundle, publish_bundle
from cluster.errors import BundleError, ServingError, StoreError
from cluster.remote import Remote
from cluster.store import Store
from serve.document import ServedDocument, ServedDocuments, ServedVersion


def document(generation: int, digest: str = "0" * 64) -> ServedDocument:
    version = ServedVersion(version=1, digest=digest, path=Path(f"bundles/{digest}"))
    return ServedDocument(model="tiny", generation=generation, versions=(version,))


@pytest.fixture
def remote(s3: S3Server, tmp_path: Path) -> Remote:
    return Remote(s3.uri(f"raybridge/{tmp_path.name}"))


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_another_host_sees_what_is_served(where: str, remote: Remote, tmp_path: Path) -> None:
    behind = remote if where == "s3" else None
    roots = ("here", "there") if where == "s3" else ("shared", "shared")
    here, there = (ServedDocuments(Store(tmp_path / root, behind)) for root in roots)
    assert (there.read("tiny"), there.models()) == (None, [])
    here.write(document(1))
    with here.changing("tiny"):
        assert (there.read("tiny"), there.models()) == (document(1), ["tiny"])
    here.remove("tiny")
    assert (there.read("tiny"), there.models()) == (None, [])


def test_an_object_store_is_asked_seldom(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = ServedDocuments(Store(tmp_path, remote))
    documents.write(document(1))
    assert documents.read_often("tiny") == document(1)
    documents.write(document(2))
    assert documents.read_often("tiny") == document(1), "as it was seen a moment ago"
    assert documents.read("tiny") == document(2)
    assert documents.read_often("tiny") == document(2)
    monkeypatch.setattr(serve.document, "REMOTE_PERIOD_S", 0)
    documents.write(document(3))
    assert documents.read_often("tiny") == document(3)


def test_when_an_object_store_is_out_the_last_that_was_seen_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.document, "REMOTE_PERIOD_S", 0)
    with s3_server() as server:
        server.make_bucket("raybridge")
        documents = ServedDocuments(Store(tmp_path, Remote(server.uri("raybridge"))))
        documents.write(document(1))
        assert documents.read_often("tiny") == document(1)
    with pytest.raises(StoreError, match="does not answer"):
        documents.read_often("tiny")
    assert documents.last_seen("tiny") == document(1)
    monkeypatch.undo()
    assert documents.read_often("tiny") == document(1), "not asked again a moment later"


def test_a_bundle_is_had_on_every_node(remote: Remote, tmp_path: Path) -> None:
    here, there = (Store(tmp_path / name, remote) for name in ("here", "there"))
    write_bundle(tmp_path / "made")
    bundle = publish_bundle(here, tmp_path / "made")
    (served,) = document(1, bundle.digest).versions
    found = ServedDocuments(there).on_this_node(served)
    assert found.path == there.bundles / bundle.digest
    assert Bundle.open(found.path).digest == bundle.digest
    (unknown,) = document(1, "f" * 64).versions
    with pytest.raises(BundleError, match=r"has no bundles/ffff.*version 1"):
        ServedDocuments(there).on_this_node(unknown)
    shared = ServedDocuments(Store(tmp_path / "here")).on_this_node(served)
    assert shared.path == here.bundles / bundle.digest


def test_a_damaged_document_is_said(store: Store) -> None:
    documents = ServedDocuments(store)
    documents.write(document(1))
    documents.path("tiny").write_text("{")
    with pytest.raises(ServingError, match=r"serving/tiny.json is not a serving document"):
        documents.read("tiny")


def test_one_command_at_a_time_changes_a_model(store: Store) -> None:
    documents = ServedDocuments(store)
    busy = pytest.raises(ServingError, match="another command is changing what is served")
    with documents.changing("tiny"), busy, ServedDocuments(store).changing("tiny"):
        pass
    with documents.changing("other"):
        pass
