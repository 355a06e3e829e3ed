"""The document, and the two phases by which replicas move from one to the next."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.errors import BundleError, ServingError, UserError
from cluster.store import Store
from serve.config import ServeConfig
from serve.document import ServedDocument, ServedDocuments, ServedVersion
from serve.rollout import next_document, roll_out


def _version(number: int, share: float = 1.0) -> ServedVersion:
    return ServedVersion(version=number, digest="d" * 64, path=Path("/bundles/x"), share=share)


def _document(generation: int, *versions: ServedVersion) -> ServedDocument:
    return ServedDocument(
        model="net", generation=generation, versions=versions or (_version(generation),)
    )


@pytest.fixture
def documents(store: Store) -> ServedDocuments:
    return ServedDocuments(store)


class FakeFleet:
    """Replicas that do as they are told, or fail, or lag behind."""

    def __init__(
        self, documents: ServedDocuments, *, replicas: int = 2, prepares: bool = True, lag: int = 0
    ) -> None:
        self.documents = documents
        self.replicas = replicas
        self.prepares = prepares
        self.lag = lag
        self.calls: list[str] = []

    def call_all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        assert timeout_s > 0
        self.calls.append(method)
        if method == "prepare":
            (text,) = args
            prepared = ServedDocument.model_validate_json(text)
            # Nothing may be committed before everybody is ready for it.
            before = self.documents.read("net")
            assert before is None or before.generation < prepared.generation
            if not self.prepares:
                raise BundleError("goldens differ")
        if method == "commit":
            document = self.documents.read("net")
            assert document is not None
            behind = self.lag > 0
            self.lag -= 1
            states = [{"generation": document.generation, "problem": None}] * self.replicas
            return [*states[1:], {"generation": 1, "problem": "no disk"}] if behind else states
        return [None] * self.replicas


def _no_sleep(_: float) -> None:
    pass


def test_all_replicas_are_ready_before_the_document_is_written(documents: ServedDocuments) -> None:
    documents.write(_document(1))
    fleet = FakeFleet(documents)
    assert roll_out(documents, fleet, _document(2), sleep=_no_sleep) == 2
    assert fleet.calls == ["prepare", "commit"]
    assert documents.read("net") == _document(2)


def test_one_replica_that_cannot_leaves_everything_as_it_was(documents: ServedDocuments) -> None:
    documents.write(_document(1))
    fleet = FakeFleet(documents, prepares=False)
    with pytest.raises(BundleError, match="goldens differ"):
        roll_out(documents, fleet, _document(2), sleep=_no_sleep)
    assert fleet.calls == ["prepare", "forget_prepared"]
    assert documents.read("net") == _document(1)


def test_a_replica_that_lags_is_told_again(documents: ServedDocuments) -> None:
    fleet = FakeFleet(documents, lag=3)
    assert roll_out(documents, fleet, _document(2), sleep=_no_sleep) == 2
    assert fleet.calls == ["prepare", *["commit"] * 4]


def test_a_replica_that_never_follows_is_reported(
    documents: ServedDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.rollout.SETTLE_TIMEOUT_S", 0.0)
    fleet = FakeFleet(documents, lag=1000)
    with pytest.raises(ServingError, match=r"1 of 2 replicas .* generation 2: no disk"):
        roll_out(documents, fleet, _document(2), sleep=_no_sleep)


def test_a_sleeping_model_needs_the_document_only(documents: ServedDocuments) -> None:
    fleet = FakeFleet(documents, replicas=0)
    assert roll_out(documents, fleet, _document(2), sleep=_no_sleep) == 0
    assert documents.read("net") == _document(2)


def test_generations_count_up() -> None:
    config = ServeConfig()
    first = next_document("net", _version(5, 0.5), config, None)
    second = next_document("net", _version(6), config, first)
    assert (first.generation, second.generation) == (1, 2)
    assert first.versions[0].share == 1.0
    assert second.main.version == 6


@pytest.mark.parametrize(
    "versions",
    [(), (_version(1, 0.5),), (_version(1, 0.5), _version(1, 0.5)), (_version(1), _version(2))],
)
def test_shares_must_make_a_whole(versions: tuple[ServedVersion, ...]) -> None:
    with pytest.raises(ValidationError):
        ServedDocument(model="net", generation=1, versions=versions)


def test_a_document_is_read_as_it_was_written(documents: ServedDocuments) -> None:
    document = _document(3, _version(1, 0.25), _version(2, 0.75))
    documents.write(document)
    assert documents.read("net") == document
    assert document.main.version == 2
    documents.write(_document(1).model_copy(update={"model": "a.b"}))
    with documents.changing("net"):
        assert documents.models() == ["a.b", "net"]
    documents.remove("net")
    documents.remove("net")
    assert documents.read("net") is None


def test_a_store_without_documents(documents: ServedDocuments) -> None:
    assert documents.models() == []
    with pytest.raises(UserError, match="model name"):
        documents.read("../etc/passwd")


def test_a_damaged_document_is_named(documents: ServedDocuments) -> None:
    documents.write(_document(1))
    documents.path("net").write_text('{"generation": 0}')
    with pytest.raises(ServingError, match=r"net\.json is not a serving document"):
        documents.read("net")


def test_two_commands_do_not_change_one_model_at_once(documents: ServedDocuments) -> None:
    with documents.changing("net"):
        with (
            pytest.raises(ServingError, match="another command"),
            documents.changing("net"),
        ):
            pytest.fail("entered")
        with documents.changing("other"):
            pass
    with documents.changing("net"):
        pass
