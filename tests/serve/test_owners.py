"""Two clusters on one store: neither takes away what the other serves."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from cluster.errors import NotFoundError, ServingError
from cluster.settings import Settings
from cluster.store import Store
from serve.__main__ import app
from serve.commands import _leave, _start, forget
from serve.deployment import Ingress, ServeCluster
from serve.document import Owner, ServedDocument, ServedDocuments, ServedVersion
from serve.owners import looks_alive, other_owners
from serve.rollout import next_document

HERE = socket.gethostname()
OWN = Owner(cluster="own", address="127.0.0.1:1", host=HERE)
DEAD = Owner(cluster="dead", address="127.0.0.1:9", host=HERE)


@pytest.fixture
def alive() -> Iterator[Owner]:
    """A cluster on this machine whose head answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        yield Owner(cluster="alive", address=f"127.0.0.1:{port}", host=HERE)


@pytest.fixture
def documents(store: Store) -> ServedDocuments:
    return ServedDocuments(store)


def document(*owners: Owner, generation: int = 7) -> ServedDocument:
    version = ServedVersion(version=1, digest="d" * 64, path=Path("bundles/x"))
    return ServedDocument(model="net", generation=generation, versions=(version,), owners=owners)


class NoRoom:
    """A cluster on which nothing comes up."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def run_model(self, *_: Any) -> None:
        raise ServingError("no room")

    def delete(self, models: list[str], *, and_root: bool) -> None:
        assert not and_root
        self.deleted += models


@pytest.mark.parametrize("previous", [document(DEAD), None])
def test_what_was_served_before_holds_again_after_a_start_that_failed(
    previous: ServedDocument | None, documents: ServedDocuments, settings: Settings
) -> None:
    if previous is not None:
        documents.write(previous)
    served = ServedVersion(version=2, digest="e" * 64, path=Path("bundles/y"))
    wanted = next_document("net", served, document().config, previous)
    cluster = NoRoom()
    with pytest.raises(ServingError, match="no room"):
        _start(
            cast("ServeCluster", cluster),
            documents,
            previous,
            wanted,
            settings,
            cast("Ingress", None),
            new=True,
        )
    # A later generation, since replicas of another cluster may have seen the one that failed.
    assert documents.read("net") == (None if previous is None else document(DEAD, generation=9))
    assert cluster.deleted == ["net"]


def test_a_model_ends_on_one_of_two_clusters(
    documents: ServedDocuments, settings: Settings, alive: Owner
) -> None:
    documents.write(document(OWN, DEAD, alive))
    said: list[str] = []
    _leave(documents, "net", OWN, said.append)
    assert documents.read("net") == document(alive), "the other one follows it"
    assert said == [
        f"note: net is still served by another Ray cluster, whose head is {alive.address} on {HERE}"
    ]
    with pytest.raises(
        ServingError, match=f"by another Ray cluster, whose head is {alive.address}"
    ):
        forget(settings, "net", print)
    assert documents.read("net") == document(alive)
    _leave(documents, "net", alive, said.append)
    assert documents.read("net") is None, "it was the last"


def test_who_else_serves(documents: ServedDocuments, alive: Owner) -> None:
    assert other_owners(documents, "net", OWN) == (), "there is no document"
    documents.write(document())
    assert other_owners(documents, "net", OWN) == (), "it does not say"
    documents.write(document(DEAD, OWN, alive))
    assert other_owners(documents, "net", alive) == ()
    assert other_owners(documents, "net", OWN) == (alive,)
    assert other_owners(documents, "net") == (alive,)
    restarted = alive.model_copy(update={"cluster": "later"})
    assert other_owners(documents, "net", restarted) == (), "it took the place of the other"
    documents.path("net").write_text("{")
    assert other_owners(documents, "net", OWN) == (), "it is damaged"


def test_who_looks_alive(alive: Owner) -> None:
    assert looks_alive(alive)
    assert not looks_alive(DEAD)
    assert not looks_alive(alive.model_copy(update={"host": "another"})), "its loopback, not ours"


def test_documents_from_before_there_were_owners(documents: ServedDocuments) -> None:
    documents.write(document(DEAD))
    values = json.loads(documents.path("net").read_text())
    del values["owners"]
    documents.path("net").write_text(json.dumps(values))
    assert documents.read("net") == document()


def test_down_removes_what_a_cluster_that_ended_left(
    documents: ServedDocuments, settings: Settings
) -> None:
    environment = settings.environment()
    done = CliRunner().invoke(app, ["down", "net"], env=environment)
    assert isinstance(done.exception, NotFoundError), done
    documents.write(document(DEAD))
    assert CliRunner().invoke(app, ["down"], env=environment).exit_code == 0
    assert documents.models() == ["net"], "others may serve from this store"
    done = CliRunner().invoke(app, ["down", "net", "--json"], env=environment)
    assert json.loads(done.stdout) == {"ended": ["net"]}
    assert "its document in the store is removed" in done.stderr
    assert documents.models() == []
