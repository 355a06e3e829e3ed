"""How a replica opens what is served, moves on, and refuses what must not be served."""

from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle

from cluster.bundle import MODEL_FILE, Bundle
from cluster.errors import BundleError, ServingError
from cluster.runtime import open_session
from cluster.store import Store
from serve.config import ReplicaConfig
from serve.document import ServedDocument, ServedDocuments, ServedVersion
from serve.metrics import Meter
from serve.predictor import Predictor, open_model

CONFIG = ReplicaConfig(max_batch_size=4)


class NoSink:
    """Takes values and drops them."""

    def count(self, *_: object) -> None:
        pass

    observe = count


class World:
    """Three bundles, a store, and a predictor over it."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.bundles = {seed: write_bundle(folder / str(seed), seed=seed) for seed in (1, 2, 3)}
        self.documents = ServedDocuments(store)
        self.failures = 0
        self.opened: list[int] = []
        self.predictor = Predictor("tiny", self.documents, self._open, self._fail)

    def _open(self, name: str, served: ServedVersion):  # type: ignore[no-untyped-def]
        self.opened.append(served.version)
        return open_model(name, served, CONFIG, Meter(name, NoSink()))

    def _fail(self) -> None:
        self.failures += 1

    def document(self, generation: int, *versions: int) -> ServedDocument:
        return ServedDocument(
            model="tiny",
            generation=generation,
            versions=tuple(
                ServedVersion(
                    version=version,
                    digest=self.bundles[version].digest,
                    path=self.bundles[version].path,
                    share=1 / len(versions),
                )
                for version in versions
            ),
        )

    def commit(self, generation: int, *versions: int) -> None:
        self.documents.write(self.document(generation, *versions))


@pytest.fixture
def world(tmp_path: Path, store: Store) -> World:
    world = World(tmp_path / "bundles", store)
    world.commit(1, 1)
    return world


def test_a_replica_opens_the_committed_generation(world: World) -> None:
    world.predictor.start()
    assert world.predictor.state()["generation"] == 1
    assert world.predictor.state()["versions"] == {"1": world.bundles[1].digest}
    assert not world.predictor.follow()


def test_without_a_document_it_does_not_start(store: Store) -> None:
    predictor = Predictor("other", ServedDocuments(store), lambda *_: pytest.fail("opened"))
    with pytest.raises(ServingError, match="nothing is to be served"):
        predictor.start()


def test_it_does_not_start_on_a_tampered_bundle(world: World) -> None:
    _tamper(world.bundles[1])
    with pytest.raises(BundleError, match="was changed"):
        world.predictor.start()


def test_a_missed_rollout_is_caught_up_with(world: World) -> None:
    world.predictor.start()
    world.commit(2, 2)
    assert world.predictor.follow()
    assert world.predictor.table.main.spec.version == "2"
    assert list(world.predictor.table.models) == ["2"]


def test_what_was_prepared_is_not_opened_again(world: World) -> None:
    world.predictor.start()
    world.predictor.prepare(world.document(2, 2))
    assert world.predictor.table.generation == 1
    world.commit(2, 2)
    assert world.predictor.follow()
    assert world.opened == [1, 2]


def test_what_was_prepared_in_vain_is_dropped(world: World) -> None:
    world.predictor.start()
    world.predictor.prepare(world.document(2, 2))
    world.predictor.forget_prepared()
    assert world.predictor.choose("1") is not None
    assert world.predictor.choose("2") is None
    world.predictor.prepare(world.document(2, 2))
    assert world.opened == [1, 2, 2]


def test_preparing_refuses_a_tampered_bundle(world: World) -> None:
    world.predictor.start()
    _tamper(world.bundles[2])
    with pytest.raises(BundleError, match="was changed"):
        world.predictor.prepare(world.document(2, 2))
    assert world.predictor.table.generation == 1


def test_preparing_refuses_another_bundle_at_the_path(world: World) -> None:
    world.predictor.start()
    (served,) = world.document(2, 2).versions
    other = served.model_copy(update={"path": world.bundles[3].path})
    with pytest.raises(BundleError, match=r"not .* that was deployed as version 2"):
        world.predictor.prepare(ServedDocument(model="tiny", generation=2, versions=(other,)))


def test_a_generation_that_cannot_be_opened_leaves_the_old_one(world: World) -> None:
    world.predictor.start()
    _tamper(world.bundles[2])
    world.commit(2, 2)
    for _ in range(3):
        assert not world.predictor.follow()
    assert world.failures == 1  # Every health check asks, but opening is dear.
    assert not world.predictor.follow(now=True)
    assert world.failures == 2
    assert world.predictor.table.main.spec.version == "1"
    assert "was changed" in world.predictor.state()["problem"]
    world.commit(3, 3)
    assert world.predictor.follow(now=True)
    assert world.predictor.state()["problem"] is None


def test_a_damaged_document_leaves_the_old_generation(world: World) -> None:
    world.predictor.start()
    world.documents.path("tiny").write_text("{")
    assert not world.predictor.follow()
    assert "not a serving document" in world.predictor.state()["problem"]


def test_a_removed_document_leaves_the_old_generation(world: World) -> None:
    world.predictor.start()
    world.documents.remove("tiny")
    assert not world.predictor.follow()
    assert world.predictor.choose() is not None


def test_shares_decide_who_answers(world: World) -> None:
    document = world.document(2, 1, 2)
    one, two = document.versions
    shadowed = (one.model_copy(update={"share": 1.0}), two.model_copy(update={"share": 0.0}))
    world.documents.write(document.model_copy(update={"versions": shadowed}))
    world.predictor.start()
    chosen = {world.predictor.choose().spec.version for _ in range(50)}  # type: ignore[union-attr]
    assert chosen == {"1"}
    named = world.predictor.choose("2")
    assert named is not None
    assert named.spec.version == "2"


def test_versions_answer_as_their_bundles_do(world: World) -> None:
    world.commit(2, 1, 2)
    world.predictor.start()
    images = np.zeros((1, 1, 2, 3), np.uint8)
    for version in (1, 2):
        model = world.predictor.choose(str(version))
        assert model is not None
        expected = open_session(world.bundles[version]).run(images)
        assert np.allclose(vars(model.batcher)["_run"](images), expected)


def _tamper(bundle: Bundle) -> None:
    file = bundle.path / MODEL_FILE
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_health_check_does_not_wait_for_a_rollout(world: World) -> None:
    world.predictor.start()
    world.commit(2, 2)
    with world.predictor._lock:
        assert not world.predictor.follow()
    assert world.predictor.follow()
