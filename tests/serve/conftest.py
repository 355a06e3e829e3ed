"""Model ``tiny`` as a replica holds it, without Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import write_bundle
from tiny import CONFIG, ListSink

from cluster.bundle import Bundle
from cluster.store import Store
from serve.app import ModelApp
from serve.config import ServeConfig
from serve.document import ServedDocument, ServedDocuments, ServedVersion
from serve.metrics import Meter
from serve.predictor import Predictor, open_model


@pytest.fixture
def sink() -> ListSink:
    return ListSink()


@pytest.fixture
def meter(sink: ListSink) -> Meter:
    return Meter("tiny", sink)


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    return [write_bundle(tmp_path / "bundles" / str(seed), seed=seed) for seed in (1, 2)]


@pytest.fixture
def predictor(bundles: list[Bundle], store: Store, meter: Meter) -> Iterator[Predictor]:
    documents = ServedDocuments(store)
    documents.write(
        ServedDocument(
            model="tiny",
            generation=1,
            versions=tuple(
                ServedVersion(
                    version=number, digest=bundle.digest, path=bundle.path, share=2 - number
                )
                for number, bundle in enumerate(bundles, 1)
            ),
            config=ServeConfig(replica=CONFIG),
        )
    )
    predictor = Predictor(
        "tiny", documents, lambda name, served: open_model(name, served, CONFIG, meter)
    )
    predictor.start()
    yield predictor
    for model in predictor.table.models.values():
        model.batcher.close()


@pytest.fixture
def app(predictor: Predictor, meter: Meter) -> ModelApp:
    return ModelApp(predictor, CONFIG, meter, "one")
