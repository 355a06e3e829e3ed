"""From a run, a bundle or a registered version to the run, and what differs from then."""

from pathlib import Path
from typing import Any

import pytest
from finished import finish_run, make_result

from cluster.bundle import SourceFile
from cluster.dataset import Dataset
from cluster.errors import BundleError, ConfigError, DataError, NotFoundError, UserError
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from train.config import TrainConfig
from train.export import export_run
from train.recipes import get_recipe
from train.reproduce import NotReproducedError, compare, differences, find_original
from train.runs import Run, RunInfo, Start, create_run

INFO = RunInfo(
    name="one",
    created_at="2026-01-01",
    dataset="digits@1",
    dataset_digest="0" * 64,
    commit="a" * 40,
    libraries={"torch": "2.14.1", "numpy": "2.1"},
    lock_sha256="b" * 64,
    cpu="x86_64 AVX2",
    mlflow_run_id=None,
)
STARTS = (Start(step=0, workers=1, total_steps=40), Start(step=12, workers=2, total_steps=40))


def config(**changes: Any) -> TrainConfig:
    return get_recipe("digits").with_changes({"data": "digits@1", "epochs": 8, **changes}, "test")


@pytest.fixture
def digits(store: Store, digits_dataset: Dataset) -> Dataset:
    """Digits in the test's own store."""
    store.datasets.mkdir(parents=True)
    (store.datasets / "digits").symlink_to(digits_dataset.path.parent)
    return Dataset.find(store, "digits@1")


@pytest.fixture
def tracking(settings: Settings) -> Tracking:
    return Tracking(settings)


def finish(store: Store, digits: Dataset, name: str = "first", **changes: Any) -> Run:
    return finish_run(store, config(), digits, name, **changes)


def test_a_run_is_found_by_every_name_that_it_goes_by(
    store: Store, digits: Dataset, tracking: Tracking
) -> None:
    run = finish(store, digits)
    bundle = export_run(run, store, "numbers")
    version = tracking.register("numbers", bundle, run_id=None)
    names = ["first", "latest", str(bundle.path), bundle.digest, bundle.digest[:16]]
    names += [f"registry:numbers{suffix}" for suffix in ("", "@1", ":1", "@champion")]
    assert version.version == 1
    for name in names:
        found = find_original(name, store, tracking)
        assert found.run.name == "first", name
        assert found.dataset.meta.digest == digits.meta.digest


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ("missing", NotFoundError, r"'missing' is no run and no bundle in \S+store, and no folder"),
        ("some/folder", NotFoundError, r"'some/folder' is no run and no bundle in \S+store"),
        ("0123456789abcdef", NotFoundError, "is no run and no bundle"),
        ("registry:missing", NotFoundError, "no model 'missing' in the registry"),
        ("latest", NotFoundError, r"no run 'latest' in \S+store; the newest are: none yet"),
    ],
)
def test_what_does_not_exist_is_looked_for_in_places_that_are_named(
    store: Store, tracking: Tracking, target: str, kind: type[UserError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        find_original(target, store, tracking)


def test_a_bundle_whose_run_is_gone_says_where_it_was_looked_for(
    store: Store, digits: Dataset, tracking: Tracking, tmp_path: Path
) -> None:
    bundle = export_run(finish(store, digits), store)
    other = Store(tmp_path / "other")
    with pytest.raises(NotFoundError, match=r"run first, which is not at \S+other/runs/first"):
        find_original(str(bundle.path), other, tracking)


def test_a_bundle_of_another_run_of_that_name_is_told(
    store: Store, digits: Dataset, tracking: Tracking, tmp_path: Path
) -> None:
    bundle = export_run(finish(store, digits), store)
    other = Store(tmp_path / "other")
    other.datasets.mkdir(parents=True)
    (other.datasets / "digits").symlink_to(digits.path.parent)
    finish_run(other, config(seed=1), digits, "first")
    with pytest.raises(BundleError, match="comes from a run first with other weights"):
        find_original(str(bundle.path), other, tracking)


def test_runs_that_cannot_be_trained_again_are_told(
    store: Store, digits: Dataset, tracking: Tracking
) -> None:
    imported = config(recipe="import", epochs=0, batch_size=1)
    finish_run(store, imported, digits, "foreign", history=())
    with pytest.raises(UserError, match="run foreign was imported: it was trained elsewhere"):
        find_original("foreign", store, tracking)
    create_run(store, config(), digits, "cut-off")
    with pytest.raises(NotFoundError, match="cut-off has not finished"):
        find_original("cut-off", store, tracking)
    run = finish(store, digits, "other-data")
    run.write_info(run.info().model_copy(update={"dataset_digest": "1" * 64}))
    with pytest.raises(DataError, match="digits@1 is not the one that run other-data"):
        find_original("other-data", store, tracking)


@pytest.mark.parametrize(
    ("exact", "changes", "cautions"),
    [
        (False, {}, []),
        (False, {"starts": STARTS}, ["trained by 1, then 2 workers, and is not exact"]),
        (False, {"restarts": 1}, []),
        (True, {"starts": STARTS}, []),
        (
            True,
            {"starts": (STARTS[0], Start(step=40, workers=1, total_steps=80))},
            ["run first was prolonged"],
        ),
        (True, {"device": "cuda"}, ["trained on cuda: the same weights are promised on CPUs only"]),
    ],
)
def test_runs_that_may_become_others_are_told_beforehand(
    store: Store,
    digits: Dataset,
    tracking: Tracking,
    exact: bool,
    changes: dict[str, Any],
    cautions: list[str],
) -> None:
    asked = config(exact={}) if exact else config()
    finish_run(store, asked, digits, "first", **changes)
    found = find_original("first", store, tracking).cautions
    assert len(found) == len(cautions)
    for line, part in zip(found, cautions, strict=True):
        assert part in line


def test_it_is_trained_by_the_workers_that_it_had(
    store: Store, digits: Dataset, tracking: Tracking
) -> None:
    elastic = config(resources={"workers": 4, "min_workers": 1})
    finish_run(store, elastic, digits, "first", workers=2, threads=3)
    again = find_original("first", store, tracking).config
    assert again == elastic.with_changes(
        {"resources": {"workers": 2, "min_workers": None, "cpus_per_worker": 3, "device": "cpu"}},
        "test",
    )
    exact = elastic.with_changes({"exact": {}}, "test")
    finish_run(store, exact, digits, "second", workers=2, threads=1)
    again = find_original("second", store, tracking).config
    assert again == exact.with_changes({"resources": {"device": "cpu"}}, "test")
    two = {"workers": 2, "min_workers": None}
    again = find_original("second", store, tracking, two).config
    assert (again.resources.workers, again.resources.min_workers) == (2, None)
    with pytest.raises(ConfigError, match="--workers: run first is not exact, and has its weights"):
        find_original("first", store, tracking, two)


def test_every_difference_is_a_line() -> None:
    assert differences(INFO, INFO) == []
    now = INFO.model_copy(
        update={
            "commit": f"{'a' * 40}-dirty",
            "libraries": {"torch": "2.15.0", "ray": "2.60", "numpy": "2.1"},
            "lock_sha256": None,
            "cpu": "aarch64 DEFAULT",
        }
    )
    assert differences(INFO, now) == [
        "commit: aaaaaaaaaaaa then, aaaaaaaaaaaa-dirty now",
        "requirements.lock: bbbbbbbbbbbb then, none now",
        "CPU: x86_64 AVX2 then, aarch64 DEFAULT now",
        "ray: none then, 2.60 now",
        "torch: 2.14.1 then, 2.15.0 now",
    ]
    dirty = INFO.model_copy(update={"commit": f"{'a' * 40}-dirty"})
    assert "which is not recorded" in differences(dirty, dirty)[0]


def test_first_weights_of_another_file_are_a_difference() -> None:
    first, second = (
        INFO.model_copy(update={"first_weights": SourceFile(name="w.pth", sha256=digit * 64)})
        for digit in "cd"
    )
    assert differences(first, second) == ["first weights: cccccccccccc then, dddddddddddd now"]


def test_equal_weights_are_identical(store: Store, digits: Dataset, tracking: Tracking) -> None:
    finish(store, digits)
    said: list[str] = []
    found = compare(
        find_original("first", store, tracking), finish(store, digits, "again"), said.append
    )
    assert found["identical"] is True
    assert said == ["identical: run again has the weights of run first, to the bit"]


def test_other_weights_are_an_error_that_names_what_differs(
    store: Store, digits: Dataset, tracking: Tracking
) -> None:
    run = finish(store, digits, workers=2, threads=1)
    run.write_info(run.info().model_copy(update={"commit": "a" * 40, "cpu": None}))
    again = finish(store, digits, "again", weights_sha256="1" * 64)
    original = find_original("first", store, tracking)
    with pytest.raises(NotReproducedError, match=r"^[^\n]*$") as caught:
        compare(original, again, print)
    text = str(caught.value)
    assert caught.value.exit_code == 1
    assert "run again has other weights (111111111111) than run first" in text
    for part in ("commit: aaaaaaaaaaaa then", "CPU: none then", "workers: 2 then, 1 now"):
        assert part in text
    assert caught.value.details["identical"] is False
    assert caught.value.details["run"] == "again"


def test_where_nothing_differs_that_is_said(
    store: Store, digits: Dataset, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A commit of a checkout with changes would be a difference that nobody can see.
    monkeypatch.setattr("train.runs.code_commit", lambda: "a" * 40)
    finish(store, digits)
    again = finish(store, digits, "again", weights_sha256="1" * 64)
    with pytest.raises(NotReproducedError, match="nothing that is recorded differs"):
        compare(find_original("first", store, tracking), again, print)


def test_results_of_older_runs_are_read() -> None:
    new = ("threads", "best_epoch", "notes", "starts")
    older = make_result().model_dump(mode="json", exclude=set(new))
    read = type(make_result()).decode(older, "test")
    assert (read.threads, read.best_epoch, read.notes, read.starts) == (None, None, (), ())
    info = INFO.model_dump(mode="json", exclude={"lock_sha256", "cpu"})
    assert RunInfo.decode(info, "test").cpu is None
