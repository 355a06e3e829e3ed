"""A run on disk: what was asked for, what came of it, and where each file lies."""

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from cluster.config import Frozen
from cluster.dataset import Dataset, SplitName
from cluster.errors import DataError, NotFoundError
from cluster.provenance import code_commit, library_versions
from cluster.store import Store, check_name, publishing, write_json_atomic
from train.config import TrainConfig
from train.metrics import Evaluation


class RunInfo(Frozen):
    """What ``run.json`` holds, written before training begins."""

    schema_version: Literal[1] = 1
    name: str
    created_at: str
    dataset: str
    """``NAME@VERSION``."""
    dataset_digest: str
    commit: str | None
    libraries: dict[str, str]
    mlflow_run_id: str | None


class RunResult(Frozen):
    """What ``result.json`` holds, written when training has ended well."""

    schema_version: Literal[1] = 1
    epochs: int
    steps: int
    workers: int
    device: str
    seconds: float
    """Wall time of the training job, start of the workers included."""
    images_per_s: float
    """Median over the epochs, all workers together, evaluation excluded."""
    restarts: int
    """How often dead workers were replaced."""
    weights_sha256: str
    history: tuple[dict[str, float], ...]
    failures: dict[str, int]
    """Writes that failed and did not stop the run: ``checkpoints``, ``tracking``."""


@dataclass(frozen=True)
class Run:
    """One run's folder in the store."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def weights_file(self) -> Path:
        """A plain ``state_dict``, as the article's ``torch.save`` writes it."""
        return self.path / "weights.pth"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def bundle_dir(self) -> Path:
        return self.path / "bundle"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def ray_dir(self) -> Path:
        """Ray Train's own files."""
        return self.path / "ray"

    def evaluation_file(self, split: SplitName) -> Path:
        return self.path / f"evaluation-{split}.json"

    def logits_file(self, split: SplitName) -> Path:
        return self.path / f"logits-{split}.safetensors"

    def config(self) -> TrainConfig:
        """The effective configuration."""
        return TrainConfig.decode(_read_json(self.path / "config.json"), f"run {self.name}")

    def info(self) -> RunInfo:
        """What was known before training began."""
        return RunInfo.decode(_read_json(self.path / "run.json"), f"run {self.name}")

    def result(self) -> RunResult:
        """What came of it.

        Raises:
            NotFoundError: the run has not ended, or not well.
        """
        if not self.result_file.is_file():
            raise NotFoundError(
                f"run {self.name} has not finished; go on with: python -m train resume {self.name}"
            )
        return RunResult.decode(_read_json(self.result_file), f"run {self.name}")

    def evaluation(self, split: SplitName) -> Evaluation | None:
        """The evaluation of a split, if there is one."""
        file = self.evaluation_file(split)
        if not file.is_file():
            return None
        return Evaluation.decode(_read_json(file), str(file))

    def dataset(self, store: Store) -> Dataset:
        """The data set that the run was trained on.

        Raises:
            NotFoundError: it is gone.
            DataError: it has other content now.
        """
        info = self.info()
        dataset = Dataset.find(store, info.dataset)
        if dataset.meta.digest != info.dataset_digest:
            raise DataError(
                f"data set {info.dataset} is not the one that run {self.name} was trained on"
            )
        return dataset

    def write_config(self, config: TrainConfig) -> None:
        """Replace the effective configuration."""
        write_json_atomic(self.path / "config.json", config.model_dump(mode="json"))

    def write_info(self, info: RunInfo) -> None:
        """Replace ``run.json``."""
        write_json_atomic(self.path / "run.json", info.model_dump(mode="json"))

    def write_result(self, result: RunResult) -> None:
        """Write ``result.json``, which makes the run a finished one."""
        write_json_atomic(self.result_file, result.model_dump(mode="json"))

    def write_evaluation(self, evaluation: Evaluation, split: SplitName) -> None:
        """Write the evaluation of a split."""
        write_json_atomic(self.evaluation_file(split), evaluation.model_dump(mode="json"))

    def write_logits(self, logits: npt.NDArray[np.float32], split: SplitName) -> None:
        """Keep the logits of a split, from which evaluation and report are made."""
        draft = self.logits_file(split).with_suffix(".draft")
        safetensors.numpy.save_file({"logits": logits}, draft)
        draft.replace(self.logits_file(split))

    def logits(self, split: SplitName) -> npt.NDArray[np.float32]:
        """Logits ``[rows, classes]`` of a split."""
        return safetensors.numpy.load_file(self.logits_file(split))["logits"]


def create_run(store: Store, config: TrainConfig, dataset: Dataset, name: str | None) -> Run:
    """Make the folder of a new run.

    Raises:
        DataError: a run of that name exists.
    """
    stamp = datetime.now(UTC)
    chosen = name or f"{dataset.meta.name}-{stamp:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    check_new_run(store, chosen)
    run = Run(store.runs / chosen)
    info = RunInfo(
        name=chosen,
        created_at=stamp.isoformat(timespec="seconds"),
        dataset=dataset.reference,
        dataset_digest=dataset.meta.digest,
        commit=code_commit(),
        libraries=library_versions(),
        mlflow_run_id=None,
    )
    with publishing(run.path) as draft:
        Run(draft).write_config(config)
        Run(draft).write_info(info)
    return run


def check_new_run(store: Store, name: str) -> None:
    """Return if a run may be called ``name``.

    Raises:
        UserError: the name cannot be used.
        DataError: a run of that name exists.
    """
    if (store.runs / check_name("run", name)).exists():
        raise DataError(f"run {name!r} exists already; go on with `resume`, or name another")


def find_run(store: Store, name: str) -> Run:
    """Find a run by name; ``latest`` is the one that was begun last.

    Raises:
        NotFoundError: there is none.
    """
    if name != "latest" and (store.runs / check_name("run", name) / "run.json").is_file():
        return Run(store.runs / name)
    runs = list_runs(store)
    if name == "latest" and runs:
        return runs[-1]
    newest = ", ".join(run.name for run in reversed(runs[-5:])) or "none yet"
    raise NotFoundError(f"no run {name!r} in {store.runs}; the newest are: {newest}")


def list_runs(store: Store) -> list[Run]:
    """All runs, the one that was begun first in front."""
    if not store.runs.is_dir():
        return []
    folders = [folder for folder in store.runs.iterdir() if (folder / "run.json").is_file()]
    visible = [Run(folder) for folder in folders if not folder.name.startswith(".")]
    return sorted(visible, key=lambda run: (run.info().created_at, run.path.stat().st_ctime))


def _read_json(path: Path) -> dict[str, object]:
    try:
        values: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    return values
