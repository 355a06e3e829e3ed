"""Runs and bundles in a store, as the training stage leaves them, without training anything."""

import json

from bundles import write_bundle

from cluster.atomic import drafting
from cluster.bundle import Bundle, publish_bundle
from cluster.store import Store
from cluster.tracking import ModelVersion


def make_run(
    store: Store,
    number: int,
    *,
    finished: bool = True,
    dataset: str = "pets@1",
    steps: int = 3,
    mlflow_id: str | None = None,
) -> str:
    """A run as the training stage leaves it; higher numbers were begun later."""
    name = f"run-{number}"
    folder = store.folder(f"runs/{name}")
    with drafting(store.runs, name) as draft:
        info = {"created_at": f"2026-01-{number:02}", "dataset": dataset}
        info |= {} if mlflow_id is None else {"mlflow_run_id": mlflow_id}
        (draft / "run.json").write_text(json.dumps(info))
        folder.publish(draft, "run.json")
    checkpoints = folder.child("checkpoints")
    checkpoints.path.mkdir()
    for step in range(1, steps + 1):
        (checkpoints.path / f"step-{step:08d}.pt").write_bytes(bytes(1000))
        checkpoints.push(f"step-{step:08d}.pt")
    if finished:
        folder.write_json("result.json", {})
    return name


def make_bundle(store: Store, seed: int, run: str) -> Bundle:
    """A bundle of data set shades@1."""
    with drafting(store.bundles, str(seed)) as draft:
        return publish_bundle(store, write_bundle(draft / "bundle", seed=seed, run=run).path)


def registered(bundle: Bundle, run: str, *aliases: str) -> ModelVersion:
    return ModelVersion("tiny", 1, aliases, bundle.digest, run, {}, 0)
