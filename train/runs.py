"""A run on disk: what was asked for, what came of it, and where each file lies."""

import contextlib
import json
import platform
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import nn

from cluster.atomic import drafting, locked
from cluster.bundle import SourceFile
from cluster.config import Frozen
from cluster.dataset import Dataset, SplitName
from cluster.errors import DataError, NotFoundError
from cluster.events import Event, read_events
from cluster.provenance import code_commit, library_versions, lock_sha256
from cluster.store import Folder, Store, check_name
from train.config import OnnxConfig, SourceConfig, TrainConfig
from train.metrics import Evaluation
from train.models.file import read_source
from train.models.graph import read_graph
from train.weights import load_state_dict, save_state_dict

RUN_FILE = "run.json"
"""Makes a folder a run."""
SOURCE_FOLDER = "model_source"
"""Where a run keeps the file that describes its network, if there is one."""


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
    lock_sha256: str | None = None
    """Of the checkout's ``requirements.lock``, if there was one."""
    cpu: str | None = None
    """Architecture and vector instructions, by which PyTorch chooses its kernels, of the machine
    that the command ran on."""
    mlflow_run_id: str | None
    first_weights: SourceFile | None = None
    """The file that the weights were imported from, or that training began with."""


class Start(Frozen):
    """A group of workers that began to work: the first, or one after a death or a resume."""

    step: int
    """Of the checkpoint that it went on from; 0 at the beginning."""
    workers: int
    total_steps: int
    """Of the whole run, as it was asked for then."""


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
    """Writes that failed and did not stop the run: ``checkpoints``, ``events``, ``tensorboard`` and
    ``tracking``."""
    threads: int | None = None
    """Of each worker."""
    best_epoch: int | None = None
    """The epoch that validation was best after, of a run with early stopping."""
    notes: tuple[str, ...] = ()
    """What the workers had to say, such as that a setting has no effect on the device."""
    starts: tuple[Start, ...] = ()
    """Every group of workers of the run, over all commands that trained it."""


@dataclass(frozen=True)
class Run:
    """One run's folder in the store.

    Paths are on this node's disk. Of an object store, the methods that read copy the newest
    content there first, and those that write put it into the store.
    """

    folder: Folder

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Folder:
        return self.folder.child("checkpoints")

    @property
    def finished(self) -> bool:
        """Whether it has ended well."""
        return self.folder.has(self.result_file.name)

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
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def tensorboard(self) -> Folder:
        """Where TensorBoard's event files are."""
        return self.folder.child("tensorboard")

    def evaluation_file(self, split: SplitName) -> Path:
        return self.path / f"evaluation-{split}.json"

    def logits_file(self, split: SplitName) -> Path:
        return self.path / f"logits-{split}.safetensors"

    def config(self) -> TrainConfig:
        """The effective configuration."""
        where = f"run {self.name}"
        return self.localize(TrainConfig.decode(self._read("config.json"), where))

    def localize(self, config: TrainConfig) -> TrainConfig:
        """The configuration with the path, on this node, of the run's copy of the model's file."""
        if not isinstance(config.model, SourceConfig):
            return config
        path = Path(SOURCE_FOLDER, config.model.path.name)
        with contextlib.suppress(FileNotFoundError):  # Which building the network says better.
            self.folder.pull(path.as_posix())
        return _with_source(config, self.path / path)

    def info(self) -> RunInfo:
        """What was known before training began."""
        return RunInfo.decode(self._read(RUN_FILE), f"run {self.name}")

    def result(self) -> RunResult:
        """What came of it.

        Raises:
            NotFoundError: the run has not ended, or not well.
        """
        if not self.finished:
            raise NotFoundError(
                f"run {self.name} has not finished; go on with: python -m train resume {self.name}"
            )
        return RunResult.decode(self._read(self.result_file.name), f"run {self.name}")

    def evaluation(self, split: SplitName) -> Evaluation | None:
        """The evaluation of a split, if there is one."""
        file = self.evaluation_file(split)
        if not self.folder.has(file.name):
            return None
        return Evaluation.decode(self._read(file.name), str(file))

    def events(self, kind: str) -> list[Event]:
        """The events of one kind, oldest first, that this node knows of."""
        return [event for event in read_events(self.events_file) if event["kind"] == kind]

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
        if isinstance(config.model, SourceConfig):
            config = _with_source(config, Path(SOURCE_FOLDER, config.model.path.name))
        self.folder.write_json("config.json", config.model_dump(mode="json"))

    def write_info(self, info: RunInfo) -> None:
        """Replace ``run.json``."""
        self.folder.write_json(RUN_FILE, info.model_dump(mode="json"))

    def write_result(self, result: RunResult) -> None:
        """Write ``result.json``, which makes the run a finished one."""
        self.folder.write_json(self.result_file.name, result.model_dump(mode="json"))

    def write_evaluation(self, evaluation: Evaluation, split: SplitName) -> None:
        """Write the evaluation of a split."""
        self.folder.write_json(self.evaluation_file(split).name, evaluation.model_dump(mode="json"))

    def write_logits(self, logits: npt.NDArray[np.float32], split: SplitName) -> None:
        """Keep the logits of a split, from which evaluation and report are made."""
        file = self.logits_file(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        safetensors.numpy.save_file({"logits": logits}, draft)
        draft.replace(file)
        self.folder.push(file.name)

    def logits(self, split: SplitName) -> npt.NDArray[np.float32]:
        """Logits ``[rows, classes]`` of a split."""
        return safetensors.numpy.load_file(self.folder.pull(self.logits_file(split).name))["logits"]

    def write_weights(self, net: nn.Module) -> None:
        """Keep a network's weights."""
        self.weights_file.parent.mkdir(parents=True, exist_ok=True)
        save_state_dict(net, self.weights_file)
        self.folder.push(self.weights_file.name)

    def load_weights(self, net: nn.Module) -> None:
        """Load the run's weights into a network.

        Raises:
            CheckpointError: they are missing or damaged, or of another network.
        """
        with contextlib.suppress(FileNotFoundError):  # Which the next line says better.
            self.folder.pull(self.weights_file.name)
        load_state_dict(net, self.weights_file)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Hold off every other command that would write to the run.

        Raises:
            DataError: one is at work.
        """
        busy = DataError(f"another command is training run {self.name}; wait until it has ended")
        return locked(self.folder.lock_file, busy)

    def _read(self, name: str) -> dict[str, object]:
        content = self.folder.read(name)
        return _decode_json(content, f"run {self.name}: {name}")


def create_run(store: Store, config: TrainConfig, dataset: Dataset, name: str | None) -> Run:
    """Make the folder of a new run.

    Raises:
        DataError: a run of that name exists.
    """
    stamp = datetime.now(UTC)
    chosen = name or f"{dataset.meta.name}-{stamp:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    check_new_run(store, chosen)
    run = Run(store.folder(f"runs/{chosen}"))
    info = RunInfo(
        name=chosen,
        created_at=stamp.isoformat(timespec="milliseconds"),
        dataset=dataset.reference,
        dataset_digest=dataset.meta.digest,
        mlflow_run_id=None,
        **environment(),
    )
    if store.remote is not None:
        run.folder.forget()  # What is left here of a run that the store no longer has.
    with drafting(store.runs, chosen) as draft:
        if isinstance(config.model, SourceConfig):
            _keep_source(config.model, draft / SOURCE_FOLDER)
        Run(Folder(draft)).write_config(config)
        Run(Folder(draft)).write_info(info)
        run.folder.publish(draft, RUN_FILE)
    return run


def environment() -> dict[str, Any]:
    """The fields of :class:`RunInfo` that say which code and which machine are at work now."""
    return {
        "commit": code_commit(),
        "libraries": library_versions(),
        "lock_sha256": lock_sha256(),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _keep_source(model: SourceConfig, folder: Path) -> None:
    read = read_graph if isinstance(model, OnnxConfig) else read_source
    folder.mkdir()
    (folder / model.path.name).write_bytes(read(model.path, model.sha256))


def _with_source(config: TrainConfig, path: Path) -> TrainConfig:
    model = config.model.model_copy(update={"path": path})
    return config.model_copy(update={"model": model})


def check_new_run(store: Store, name: str) -> None:
    """Return if a run may be called ``name``.

    Raises:
        UserError: the name cannot be used.
        DataError: a run of that name exists.
    """
    if store.folder(f"runs/{check_name('run', name)}").has(RUN_FILE):
        raise DataError(f"run {name!r} exists already; go on with `resume`, or name another")


def find_run(store: Store, name: str) -> Run:
    """Find a run by name; ``latest`` is the one that was begun last.

    Raises:
        NotFoundError: there is none.
    """
    if name != "latest":
        run = Run(store.folder(f"runs/{check_name('run', name)}"))
        if run.folder.has(RUN_FILE):
            return run
    runs = list_runs(store)
    if name == "latest" and runs:
        return runs[-1]
    newest = ", ".join(run.name for run in reversed(runs[-5:])) or "none yet"
    raise NotFoundError(f"no run {name!r} in {store.address}; the newest are: {newest}")


def list_runs(store: Store) -> list[Run]:
    """All runs, the one that was begun first in front."""
    folder = store.folder("runs")
    names = folder.whole(RUN_FILE)
    begun = []
    contents = folder.read_all([f"{name}/{RUN_FILE}" for name in names])
    for name, content in zip(names, contents, strict=True):
        info = RunInfo.decode(_decode_json(content, f"run {name}"), f"run {name}")
        begun.append((info.created_at, name))
    return [Run(folder.child(name)) for _, name in sorted(begun)]


def _decode_json(content: bytes | None, where: str) -> dict[str, object]:
    try:
        values: dict[str, object] = json.loads(content or b"")
    except ValueError as error:
        raise DataError(f"{where} cannot be read: {error}") from None
    return values
