"""Images per second: `train fit` as users run it, beside a bare torchrun loop, round by round.

    python tests/benchmarks/train_throughput.py [--rounds 3]

Both train the article's Net on Fashion-MNIST: two workers of one thread each, a batch of 128. Each
runs one after the other; the time of the training steps alone is counted on both sides.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from record import ROOT, Series, run_json, write_result

from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE

EPOCHS, PEER_EPOCHS, BATCH_SIZE, WORKERS = 5, 2, 128, 2
PEER = ROOT / "tests" / "benchmarks" / "peers" / "torchrun_ddp.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    ours: list[float] = []
    bare: list[float] = []
    accuracies: list[float] = []
    with tempfile.TemporaryDirectory() as store:
        environment = {STORE_VARIABLE: store, TRACKING_VARIABLE: ""}
        train = [sys.executable, "-m", "train"]
        data = run_json(
            [*train, "ingest", "fashion-mnist", "--name", "fashion-mnist", "--json"], environment
        )
        fit = [
            *(*train, "fit", "fashion_mnist", "--workers", str(WORKERS), "--json"),
            *("--set", f"epochs={EPOCHS}", "--set", f"batch_size={BATCH_SIZE}"),
            *("--set", "resources.cpus_per_worker=1"),
        ]
        torchrun = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(WORKERS), str(PEER)),
            *(str(data["path"]), str(PEER_EPOCHS), str(BATCH_SIZE)),
        ]
        for index in range(rounds):
            theirs = run_json(torchrun, {"PYTHONPATH": str(ROOT)})["images_per_s"]
            assert isinstance(theirs, list)
            bare.append(statistics.median(theirs))
            mine = run_json([*fit, "--set", f"seed={index}"], environment)
            speed, accuracy = mine["images_per_s"], mine["accuracy"]
            assert isinstance(speed, float)
            assert isinstance(accuracy, float)
            ours.append(speed)
            accuracies.append(accuracy)
            print(
                f"round {index + 1}: torchrun {bare[-1]:,.0f}, ours {speed:,.0f} images/s, "
                f"accuracy {accuracy:.4f}"
            )
    file = write_result(
        "train_throughput",
        title="Training throughput beside a bare torchrun loop",
        what=(
            "The article's Net on Fashion-MNIST (54,000 training images of 28x28), two "
            f"data-parallel workers of one thread each, batch {BATCH_SIZE}; in each round "
            f"{PEER_EPOCHS} epochs of the torchrun loop, then {EPOCHS} of `train fit` with another "
            "seed. The median epoch of each, the training steps alone. `train fit` flips images, "
            "sums metrics and reports progress meanwhile (its checkpoints, one an epoch, fall "
            "between the epochs); the torchrun loop does nothing else."
        ),
        unit="images/s",
        command=f"python tests/benchmarks/train_throughput.py --rounds {rounds}",
        reference=Series("bare torchrun DDP", tuple(bare)),
        others=[Series("train fit", tuple(ours))],
        notes=[
            f"Test accuracy of the {rounds} runs of {EPOCHS} epochs: "
            + ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
            + f" (mean {statistics.mean(accuracies):.4f}).",
            "The machine is shared: the ratio is what counts.",
        ],
        details={"test_accuracy": accuracies},
    )
    print(Path(file).read_text("utf-8"))


if __name__ == "__main__":
    main()
