"""What checkpoints in the middle of an epoch cost: images/s with and without them, round by round.

    python tests/benchmarks/checkpoint_cost.py [RECIPE] [--rounds 3] [--epochs 2] [--every-s 5]

RECIPE, by default `fashion_mnist`, is one for Fashion-MNIST. Two workers of one thread each; the
checkpoint at the end of an epoch is written on both sides.
"""

import argparse
import statistics

from fits import alternate, ingest, own_store
from record import write_result

DEFAULT = "fashion_mnist"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--every-s", type=float, default=5)
    given = parser.parse_args()
    variants = {
        "epoch ends alone": ("--set", "checkpoint.every_s=none"),
        f"every {given.every_s:g} s": ("--set", f"checkpoint.every_s={given.every_s}"),
    }
    with own_store() as environment:
        ingest("fashion-mnist", None, environment)
        without, with_them = alternate(
            given.recipe, variants, given.rounds, given.epochs, environment
        )
    costs = [1 - mine / other for mine, other in zip(with_them.values, without.values, strict=True)]
    file = write_result(
        "checkpoint_cost" if given.recipe == DEFAULT else f"checkpoint_cost_{given.recipe}",
        title="What checkpoints cost",
        what=(
            f"`train fit {given.recipe} --workers 2`, {given.epochs} epochs of 54,000 images a "
            "run, with a checkpoint at the end of each epoch alone, and with further ones in the "
            "middle, in turns. The default is one every 30 seconds."
        ),
        unit="images/s",
        command=f"python tests/benchmarks/checkpoint_cost.py {given.recipe} "
        f"--rounds {given.rounds} --epochs {given.epochs} --every-s {given.every_s:g}",
        reference=without,
        others=[with_them],
        notes=[
            f"Share of an epoch that a checkpoint every {given.every_s:g} s takes, round by round: "
            + ", ".join(f"{cost:+.1%}" for cost in costs)
            + f" (median {statistics.median(costs):+.1%}).",
        ],
        details={"share_of_epoch": costs},
    )
    print(file.read_text("utf-8"))


if __name__ == "__main__":
    main()
