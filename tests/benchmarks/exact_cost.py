"""What `--exact` costs: images/s beside DistributedDataParallel, round by round.

    python tests/benchmarks/exact_cost.py [RECIPE] [--rounds 3] [--epochs 2]

RECIPE, by default `fashion_mnist`, is one for Fashion-MNIST; `fashion_mnist_fast` trains the
network of airbench. Two workers of one thread each. An exact batch is cut into as many shards as
the other one has parts, and no fewer than `exact.shards` is by default.
"""

import argparse

from fits import WORKERS, alternate, ingest, own_store
from record import write_result

from train.config import ExactConfig
from train.recipes import get_recipe

DEFAULT = "fashion_mnist"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    config = get_recipe(given.recipe)
    variants = {"DistributedDataParallel": (), "--exact": ("--exact",)}
    with own_store() as environment:
        ingest("fashion-mnist", None, environment)
        default, exact = alternate(given.recipe, variants, given.rounds, given.epochs, environment)
    file = write_result(
        "exact_cost" if given.recipe == DEFAULT else f"exact_cost_{given.recipe}",
        title="What exact training costs",
        what=(
            f"`train fit {given.recipe} --workers {WORKERS}`, {given.epochs} epochs of 54,000 "
            "images a run, in turns with DistributedDataParallel, which is the default, and with "
            f"`--exact`. A batch of {config.batch_size} images is shared out to {WORKERS} "
            f"workers by the one, cut into {ExactConfig().shards} shards by the other"
            + (f", both in parts of {config.micro_batch_size}." if config.micro_batch_size else ".")
        ),
        unit="images/s",
        command=f"python tests/benchmarks/exact_cost.py {given.recipe} --rounds {given.rounds} "
        f"--epochs {given.epochs}",
        reference=default,
        others=[exact],
        notes=["The machine is shared: the ratio is what counts."],
    )
    print(file.read_text("utf-8"))


if __name__ == "__main__":
    main()
