"""What came to be used between a plan and its removal stays, and what that needs."""

import os
import time

from datasets import write_dataset
from stored import make_bundle, make_run, registered

from cluster.atomic import locked
from cluster.dataset import dataset_versions
from cluster.inventory import read_bundles
from cluster.leftovers import DAY_S
from cluster.removal import carry_out
from cluster.retention import Policy, References, plan
from cluster.store import Store
from cluster.tracking import ModelVersion

STRICT = Policy(keep_runs=1, older_than_s=0, datasets=True)
LATER_S = 2 * DAY_S


def nothing_registered() -> list[ModelVersion]:
    return []


def test_a_run_that_stays_keeps_its_bundle_and_data(store: Store) -> None:
    for version in (1, 2):
        write_dataset(store, name="shades", version=version, seed=version)
    make_run(store, 1, finished=False, dataset="shades@1")
    make_run(store, 2, dataset="shades@2", steps=1)
    bundle = make_bundle(store, 1, "run-1")
    planned = plan(store, References(), STRICT, time.time() + LATER_S)
    assert [removal.kind for removal in planned.removals] == ["run", "bundle", "data set"]
    with locked(store.folder("runs/run-1").lock_file):
        outcome = carry_out(store, planned.removals, nothing_registered)
    assert outcome.failures == {
        "run run-1": "a command is at work on it",
        f"bundle {bundle.digest}": "run run-1 stays, or came meanwhile, and made it",
        "data set shades@1": "run run-1 stays, or came meanwhile, and uses it",
    }
    assert outcome.removed == ()
    assert dataset_versions(store, "shades") == [1, 2]
    assert bundle.digest in read_bundles(store)


def test_a_bundle_that_stays_keeps_its_data(store: Store) -> None:
    for version in (1, 2):
        write_dataset(store, name="shades", version=version, seed=version)
    planned = plan(store, References(), STRICT, time.time() + LATER_S)
    bundle = make_bundle(store, 1, "elsewhere")
    assert carry_out(store, planned.removals, nothing_registered).failures == {
        "data set shades@1": f"bundle {bundle.digest} stays, or came meanwhile, and refers to it"
    }


def test_a_run_that_is_registered_or_goes_on_between_plan_and_removal_stays(store: Store) -> None:
    for number in (1, 2, 3):
        make_run(store, number, steps=1)
    planned = plan(store, References(), STRICT, time.time() + LATER_S)
    bundle = make_bundle(store, 1, "run-1")
    store.folder("runs/run-2").write_json("metrics.json", {})
    os.utime(store.runs / "run-2" / "metrics.json", (time.time() + 60, time.time() + 60))
    ended = carry_out(store, planned.removals, lambda: [registered(bundle, "run-1")])
    assert ended.failures == {
        "run run-1": "it was registered meanwhile, as tiny:1",
        "run run-2": "it was written to, or fetched, meanwhile",
    }


def test_a_bundle_that_is_wanted_between_plan_and_removal_stays(store: Store) -> None:
    bundles = [make_bundle(store, seed, "gone") for seed in (1, 2, 3)]
    planned = plan(store, References(), STRICT, time.time() + LATER_S)
    deployed, aliased, fetched = (f"bundle {bundle.digest}" for bundle in bundles)
    document = {"model": "tiny", "versions": [{"digest": bundles[0].digest}]}
    store.folder("serving").write_json("tiny.json", document)
    manifest = bundles[2].path / "manifest.json"
    os.utime(manifest, (time.time() + 60, time.time() + 60))
    ended = carry_out(store, planned.removals, lambda: [registered(bundles[1], "gone", "champion")])
    assert ended.failures == {
        deployed: "it was deployed meanwhile",
        aliased: "tiny:1 got alias @champion meanwhile",
        fetched: "it was written to, or fetched, meanwhile",
    }
