"""Images per second: `train fit` as users run it, beside two torchrun loops, round by round.

    python tests/benchmarks/train_throughput.py [--rounds 3]

All train the article's Net on Fashion-MNIST: two workers of one thread each, a batch of 128. Each
runs one after the other; the time of the training steps alone is counted on all sides.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from fits import WORKERS, fit, ingest, own_store
from record import ROOT, Series, run_json, write_result

# Of three epochs the median leaves out the first one, in which memory and caches are cold.
EPOCHS, PEER_EPOCHS, BATCH_SIZE, CHECKPOINT_S = 5, 3, 128, 5
TRIAL_STEPS = 60
PEERS = ROOT / "tests" / "benchmarks" / "peers"
FORMATS = [("--memory-format", name) for name in ("contiguous_format", "channels_last")]
LOADERS = [("--loaders", str(number)) for number in (0, 1, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    bare: list[float] = []
    textbook: list[float] = []
    ours: list[float] = []
    accuracies: list[float] = []
    with own_store() as environment:
        data = ingest("fashion-mnist", None, environment)
        choices = {
            "torchrun_ddp.py": fastest("torchrun_ddp.py", data, FORMATS),
            "pil_loader.py": fastest(
                "pil_loader.py", data, [a + b for a, b in itertools.product(FORMATS, LOADERS)]
            ),
        }
        for index in range(rounds):
            for name, speeds in (("torchrun_ddp.py", bare), ("pil_loader.py", textbook)):
                speeds.append(peer(name, data, PEER_EPOCHS, choices[name]))
            run = fit(
                "fashion_mnist",
                *("--set", f"epochs={EPOCHS}", "--set", f"batch_size={BATCH_SIZE}"),
                *("--set", f"checkpoint.every_s={CHECKPOINT_S}", "--set", f"seed={index}"),
                environment=environment,
            )
            ours.append(float(str(run["images_per_s"])))
            accuracies.append(float(str(run["accuracy"])))
            print(
                f"round {index + 1}: torchrun {bare[-1]:,.0f}, PIL {textbook[-1]:,.0f}, ours "
                f"{ours[-1]:,.0f} images/s, accuracy {accuracies[-1]:.4f}",
                flush=True,
            )
    over_textbook = statistics.median(
        mine / theirs for mine, theirs in zip(ours, textbook, strict=True)
    )
    file = write_result(
        "train_throughput",
        title="Training throughput beside torchrun loops",
        what=(
            "The article's Net on Fashion-MNIST (54,000 training images of 28x28), two "
            f"data-parallel workers of one thread each, batch {BATCH_SIZE}; in each round "
            f"{PEER_EPOCHS} epochs of each torchrun loop, then {EPOCHS} of `train fit` with "
            "another seed. The median epoch of each, the training steps alone. `train fit` flips "
            "images, sums metrics, reports progress, and saves a checkpoint every "
            f"{CHECKPOINT_S} seconds meanwhile. By default it computes wide convolutions by "
            "Winograd's algorithm and sums gradients in shared memory; the loops use PyTorch's "
            "convolutions and gloo. The bare loop takes batches of a uint8 tensor by "
            "index and does nothing else. The textbook loop reads PIL images one by one in a "
            "DataLoader, flips and normalises them, as torchvision's tutorials do."
        ),
        unit="images/s",
        command=f"python tests/benchmarks/train_throughput.py --rounds {rounds}",
        reference=Series("bare torchrun DDP", tuple(bare)),
        others=[
            Series("textbook DataLoader DDP", tuple(textbook)),
            Series("train fit", tuple(ours)),
        ],
        notes=[
            f"`train fit` is {over_textbook:.3f} times as fast as the textbook loop (median of the "
            "ratios round by round).",
            f"Each loop has what was fastest in {TRIAL_STEPS} steps before the first round: of the "
            "memory formats, and of 0, 1 and 2 loading processes a worker: "
            + "; ".join(f"`{name} {' '.join(chosen)}`" for name, chosen in choices.items())
            + ".",
            f"Test accuracy of the {rounds} runs of {EPOCHS} epochs: "
            + ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
            + f" (mean {statistics.mean(accuracies):.4f}).",
            "The machine is shared: the ratio is what counts.",
        ],
        details={
            "test_accuracy": accuracies,
            "ratio_to_textbook": over_textbook,
            "choices": {name: list(chosen) for name, chosen in choices.items()},
        },
    )
    print(file.read_text("utf-8"))


def fastest(name: str, data: Path, options: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Which options of a loop give most images per second, over two short epochs."""
    trial = ("--steps", str(TRIAL_STEPS))
    speeds = {chosen: peer(name, data, 2, (*chosen, *trial)) for chosen in options}
    for chosen, speed in speeds.items():
        print(f"{name} {' '.join(chosen)}: {speed:,.0f} images/s", flush=True)
    return max(speeds, key=lambda chosen: speeds[chosen])


def peer(name: str, data: Path, epochs: int, options: tuple[str, ...]) -> float:
    """Images per second of a loop under torchrun: the median of its epochs."""
    told = run_json(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(WORKERS), str(PEERS / name)),
            *(str(data), str(epochs), str(BATCH_SIZE), *options),
        ],
        {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )["images_per_s"]
    assert isinstance(told, list)
    return statistics.median(told)


if __name__ == "__main__":
    main()
