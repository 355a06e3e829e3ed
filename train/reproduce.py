"""Find the run that a model comes from, train it again, and say whether the weights are the same.

What is promised: an exact run gives the same bits whatever its workers and interruptions were; any
other run gives them for the same number of workers and threads.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from cluster.bundle import MANIFEST_FILE, WEIGHTS_FILE, Bundle, find_bundle
from cluster.dataset import Dataset
from cluster.errors import BundleError, ConfigError, NotFoundError, RaybridgeError, UserError
from cluster.store import Store
from cluster.tracking import Tracking
from train.config import IMPORT_RECIPE, TrainConfig
from train.runs import RUN_FILE, Run, RunInfo, RunResult, environment, find_run
from train.weights import load_weights_only

REGISTRY = "registry:"
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


class NotReproducedError(RaybridgeError):
    """The weights are others. ``details`` says what differs, for ``--json``."""


@dataclass(frozen=True)
class Original:
    """A run that is to be trained again."""

    run: Run
    info: RunInfo
    result: RunResult
    config: TrainConfig
    """To train it again with: as it was, on the device and by the workers of its end."""
    dataset: Dataset

    @property
    def cautions(self) -> list[str]:
        """Why the weights may become others, even where nothing differs."""
        name, config, result = self.run.name, self.config, self.result
        found = []
        counts = [start.workers for start in result.starts]
        if config.exact is None and len(set(counts)) > 1:
            found.append(
                f"run {name} was trained by {', then '.join(map(str, counts))} workers, and is not "
                "exact: only exact runs (--exact) promise the same weights then"
            )
        if len({start.total_steps for start in result.starts}) > 1:
            found.append(
                f"run {name} was prolonged: its first steps took the learning rates of a shorter "
                "training"
            )
        if result.device != "cpu":
            found.append(
                f"run {name} was trained on {result.device}: the same weights are promised "
                "on CPUs only"
            )
        return found


def find_original(
    target: str,
    store: Store,
    tracking: Tracking,
    resources: Mapping[str, object] | None = None,
) -> Original:
    """Find the run that a name stands for.

    Args:
        target: a run's name or ``latest``; a bundle's folder, or its digest, of which eight digits
            are enough; or ``registry:MODEL``, with ``@VERSION`` or ``@ALIAS``.
        store: where runs, bundles and data sets live.
        tracking: where the registry is.
        resources: fields that replace the run's, such as the number of workers.

    Raises:
        ConfigError: the run is not exact, and ``resources`` are given.
        NotFoundError: there is no such thing, or its run or data set is gone, or is not finished.
        DataError: the data set has other content now.
        BundleError: the bundle is damaged, or of another run of the same name.
        UserError: it was imported, and not trained here.
    """
    run = _find_run(target, store, tracking)
    config = run.config()
    if config.recipe == IMPORT_RECIPE:
        raise _imported(f"run {run.name}")
    if resources and config.exact is None:
        raise ConfigError(
            f"--workers: run {run.name} is not exact, and has its weights from as many workers as "
            "it had"
        )
    result = run.result()
    again = _again(config, result).with_changes({"resources": resources or {}}, "reproduce")
    return Original(run, run.info(), result, again, run.dataset(store))


def differences(before: RunInfo, now: RunInfo) -> list[str]:
    """Everything recorded that may give other weights: a line each, what it was and what it is."""
    pairs = {
        "commit": (before.commit, now.commit),
        "requirements.lock": (before.lock_sha256, now.lock_sha256),
        "CPU": (before.cpu, now.cpu),
        **{
            name: (before.libraries.get(name), now.libraries.get(name))
            for name in sorted({*before.libraries, *now.libraries})
        },
    }
    if before.first_weights is not None and now.first_weights is not None:
        pairs["first weights"] = (before.first_weights.sha256, now.first_weights.sha256)
    found = [_differs(name, was, is_) for name, (was, is_) in pairs.items() if was != is_]
    if before.commit is not None and before.commit == now.commit and "-dirty" in before.commit:
        found.append("commit: the checkout had changes then and has now; which is not recorded")
    return found


def differences_now(original: Original) -> list[str]:
    """What differs before anything is trained."""
    return differences(original.info, original.info.model_copy(update=environment()))


def compare(original: Original, again: Run, say: Callable[[str], None]) -> dict[str, object]:
    """Compare the weights of two finished runs.

    Args:
        original: the first.
        again: the second.
        say: told that they are the same.

    Returns:
        Fields for the JSON line.

    Raises:
        NotReproducedError: they are others; the message names what differs.
    """
    before, now = original.result, again.result()
    found = differences(original.info, again.info())
    if original.config.exact is None:
        pairs = {
            "workers": (before.workers, now.workers),
            "threads of a worker": (before.threads, now.threads),
        }
        found += [_differs(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]
    if before.device != now.device:
        found.append(_differs("device", before.device, now.device))
    details = {
        "original": original.run.name,
        "original_weights_sha256": before.weights_sha256,
        "identical": before.weights_sha256 == now.weights_sha256,
        "differences": found,
    }
    if not details["identical"]:
        reasons = [*found, *original.cautions]
        why = "; ".join(reasons) or "nothing that is recorded differs"
        error = NotReproducedError(
            f"run {again.name} has other weights ({now.weights_sha256[:12]}) than run "
            f"{original.run.name} ({before.weights_sha256[:12]}): {why}"
        )
        error.details = {"run": again.name, "weights_sha256": now.weights_sha256, **details}
        raise error
    say(f"identical: run {again.name} has the weights of run {original.run.name}, to the bit")
    return details


def _find_run(target: str, store: Store, tracking: Tracking) -> Run:
    if target.startswith(REGISTRY):
        # A number after @ is a version, as in a bundle's or a data set's reference.
        reference = re.sub(r"@(\d+)$", r":\1", target.removeprefix(REGISTRY))
        version = tracking.resolve(reference)
        return _run_of(tracking.fetch_bundle(version), version.reference, store)
    if (Path(target) / MANIFEST_FILE).is_file():
        return _run_of(Bundle.open(Path(target)), target, store)
    if "/" not in target and (target == "latest" or store.folder(f"runs/{target}").has(RUN_FILE)):
        return find_run(store, target)
    if _DIGEST.fullmatch(target):
        digests = [
            name for name in store.folder("bundles").whole(MANIFEST_FILE) if name.startswith(target)
        ]
        bundle = find_bundle(store, digests[0]) if len(digests) == 1 else None
        if bundle is not None:
            return _run_of(bundle, f"bundle {target}", store)
        if len(digests) > 1:
            raise NotFoundError(f"{len(digests)} bundles begin with {target}; give more digits")
    raise NotFoundError(
        f"{target!r} is no run and no bundle in {store.address}, and no folder with a "
        f"{MANIFEST_FILE}; a version in the registry is {REGISTRY}MODEL@VERSION"
    )


def _run_of(bundle: Bundle, what: str, store: Store) -> Run:
    """The run that a bundle was exported from."""
    lineage = bundle.manifest.lineage
    if lineage.recipe == IMPORT_RECIPE:
        raise _imported(what)
    folder = store.folder(f"runs/{lineage.run}")
    if not folder.has(RUN_FILE):
        raise NotFoundError(
            f"{what} comes from run {lineage.run}, which is not at {folder.address}"
        )
    run = Run(folder)
    of_bundle = safetensors.torch.load_file(bundle.path / WEIGHTS_FILE)
    of_run = load_weights_only(run.folder.pull(run.weights_file.name)) if run.finished else {}
    same = of_bundle.keys() == of_run.keys() and all(
        torch.equal(tensor, of_run[name]) for name, tensor in of_bundle.items()
    )
    if run.info().dataset_digest != lineage.dataset_digest or not same:
        raise BundleError(
            f"{what} comes from a run {lineage.run} with other weights or other data than the one "
            f"at {folder.address}: that was trained on since, or is another of the same name"
        )
    return run


def _again(config: TrainConfig, result: RunResult) -> TrainConfig:
    """The configuration, with what decides the bits beside it as it was."""
    resources: dict[str, object] = {"device": result.device}
    if config.exact is None:
        resources |= {"workers": result.workers, "min_workers": None}
        if result.threads is not None:
            resources["cpus_per_worker"] = result.threads
    return config.with_changes({"resources": resources}, "reproduce")


def _imported(what: str) -> UserError:
    return UserError(f"{what} was imported: it was trained elsewhere, and cannot be trained again")


def _differs(name: str, was: object, is_: object) -> str:
    def short(value: object) -> str:
        # Of a digest or a commit the beginning says enough, and the mark of changes the rest.
        text = "none" if value is None else str(value)
        return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}", r"\1", text)

    return f"{name}: {short(was)} then, {short(is_)} now"
