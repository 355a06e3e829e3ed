"""Time to the accuracy of ResNet-20: a plain PyTorch loop of 40 epochs beside a short `train fit`.

    python tests/benchmarks/resnet20_peer.py FOLDER [--seed 0] [--epochs 5]

FOLDER holds CIFAR-10 as Hugging Face has it: Parquet files of PNG images, ``train-*`` and
``test-*``. Ours is the recipe `cifar10_fast` with `--epochs`: a whole run that ends at an accuracy
no lower than the loop's. One seed an invocation, since the loop takes an hour; its figures are
written at once, and those of other numbers of epochs are dropped from the page.
"""

import argparse
import statistics
import sys
from pathlib import Path

from fits import WORKERS, fit, ingest, own_store
from record import ROOT, append_run, run_json, spread, write_facts

PEER = ROOT / "tests" / "benchmarks" / "peers" / "resnet20_loop.py"
PEER_EPOCHS, RECIPE = 40, "cifar10_fast"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    measured = measure(given.folder, given.seed, given.epochs)
    fields = {"seed": given.seed, "peer_epochs": PEER_EPOCHS, "epochs": given.epochs}
    runs = append_run("resnet20_peer", {**fields, **measured}, same=("peer_epochs", "epochs"))

    def figures(key: str) -> list[float]:
        return [float(str(run[key])) for run in runs]

    reached = sum(
        mine >= theirs
        for mine, theirs in zip(figures("accuracy"), figures("peer_accuracy"), strict=True)
    )
    formats = {str(run["peer_memory_format"]) for run in runs}
    file = write_facts(
        "resnet20_peer",
        title="Time to the accuracy of ResNet-20",
        what=(
            f"CIFAR-10, two cores. The peer is ResNet-20 by a plain PyTorch loop: {PEER_EPOCHS} "
            "epochs of all 50,000 training images, SGD with a one-cycle schedule, batches taken by "
            f"index from a uint8 tensor, mirrored and cropped at once, {WORKERS} threads. Ours is "
            f"`train fit {RECIPE} --set epochs={given.epochs} --workers {WORKERS}` on 98 % of "
            "them. One after the other, accuracy on the 10,000 test images after the last epoch, "
            "without test-time augmentation."
        ),
        facts={
            "runs": str(len(runs)),
            "peer: test accuracy": spread(figures("peer_accuracy"), ".4f"),
            "peer: seconds of its training steps": spread(figures("peer_seconds"), ",.0f"),
            "ours: test accuracy": spread(figures("accuracy"), ".4f"),
            "ours: seconds of the job: start, training, validation": spread(
                figures("seconds"), ",.0f"
            ),
            "runs in which ours is no less accurate": f"{reached} of {len(runs)}",
            "ours over the peer's seconds, median": f"{statistics.median(figures('ratio')):.3f}",
        },
        notes=[
            "The peer's memory format is the faster one over some steps before its start: "
            f"{', '.join(sorted(formats))}. The time of that, and of its evaluation, is not "
            "counted.",
        ],
        command=f"python tests/benchmarks/resnet20_peer.py {given.folder.name} "
        f"--seed {given.seed} --epochs {given.epochs}",
        details={"runs": runs},
    )
    print(file.read_text("utf-8"))


def measure(folder: Path, seed: int, epochs: int) -> dict[str, object]:
    """Run the peer, then ours; the figures of both."""
    with own_store() as environment:
        data = ingest("cifar10", folder, environment, "--split", "0.98,0.02")
        told = run_json(
            [
                *(sys.executable, str(PEER), str(data), "--epochs", str(PEER_EPOCHS)),
                *("--seed", str(seed), "--threads", str(WORKERS)),
            ],
            {"PYTHONPATH": str(ROOT)},
        )
        print(f"peer: {told}", flush=True)
        run = fit(
            RECIPE, "--set", f"epochs={epochs}", "--set", f"seed={seed}", environment=environment
        )
    kept = ("accuracy", "seconds", "images_per_s", "weights_sha256")
    return {
        **{f"peer_{key}": value for key, value in told.items()},
        **{key: run[key] for key in kept},
        "ratio": float(str(run["seconds"])) / float(str(told["seconds"])),
    }


if __name__ == "__main__":
    main()
