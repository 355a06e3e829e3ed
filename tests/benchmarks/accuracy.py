"""What a recipe reaches: one run of it, added to those that docs/benchmarks has already.

    python tests/benchmarks/accuracy.py fashion_mnist_fast [--seed 0]
    python tests/benchmarks/accuracy.py cifar10_best --folder FOLDER [--seed 0]

FOLDER holds CIFAR-10 as Hugging Face has it: Parquet files of PNG images, ``train-*`` and
``test-*``. One seed an invocation, since a run may take an hour; its figures are written at once.
Runs of the recipe as it was before a change are dropped from the page.
"""

import argparse
import hashlib
from pathlib import Path

from fits import WORKERS, fit, ingest, own_store, train
from record import append_run, spread, write_facts

from train.recipes import RECIPES, get_recipe

SHARES = "0.98,0.02"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    config = get_recipe(given.recipe)
    # What it sets alone: a field that is new since, at its default, changes nothing.
    values = config.model_dump_json(exclude_defaults=True)
    run = {
        "recipe_sha256": hashlib.sha256(values.encode()).hexdigest(),
        "seed": given.seed,
        **measure(given.recipe, config.data, given.folder, given.seed),
    }
    name = f"accuracy_{given.recipe}"
    runs = append_run(name, run, same=("recipe_sha256",))
    figures = {key: [float(str(run[key])) for run in runs] for key in run if is_figure(run[key])}
    seeds = ", ".join(str(run["seed"]) for run in runs)
    options = f" --folder {given.folder.name}" if given.folder else ""
    file = write_facts(
        name,
        title=f"What the recipe {given.recipe} reaches",
        what=(
            f"`train fit {given.recipe} --workers {WORKERS}`, a thread each, on `{config.data}` "
            f"ingested with `--split {SHARES}`, once for each seed: {seeds}. Accuracy is that on "
            "the 10,000 test images at the end of the last epoch; six views are the image as "
            "it is, moved a pixel up and left, and moved down and right, each with its mirror "
            "image (Jordan 2024, section 3.5), by `train evaluate --tta mirror-translate`."
        ),
        facts={
            "runs": str(len(runs)),
            "test accuracy": spread(figures["accuracy"], ".4f"),
            "test accuracy, six views": spread(figures["accuracy_six_views"], ".4f"),
            "seconds of the job: start, training, validation": spread(figures["seconds"], ",.0f"),
            "seconds of the whole command": spread(figures["wall_s"], ",.0f"),
            "images/s": spread(figures["images_per_s"], ",.0f"),
        },
        notes=[
            "Mean, standard deviation, and lowest to highest, where there is more than one run.",
            "Commits: "
            + ", ".join(f"seed {run['seed']} {str(run['commit'])[:12]}" for run in runs),
        ],
        command=f"python tests/benchmarks/accuracy.py {given.recipe}{options} --seed {given.seed}",
        details={"runs": runs},
    )
    print(file.read_text("utf-8"))


def measure(recipe: str, data: str, folder: Path | None, seed: int) -> dict[str, object]:
    """Train with one seed; the figures, and the digest of the weights."""
    with own_store() as environment:
        ingest(data, folder, environment, "--split", SHARES)
        run = fit(recipe, "--set", f"seed={seed}", environment=environment)
        measured = train(
            *("evaluate", str(run["run"]), "--tta", "mirror-translate"), environment=environment
        )
    views = measured["tta"]
    assert isinstance(views, dict)
    kept = ("accuracy", "seconds", "wall_s", "images_per_s", "epochs", "weights_sha256")
    return {**{key: run[key] for key in kept}, "accuracy_six_views": views["accuracy"]}


def is_figure(value: object) -> bool:
    """Whether it is a number that runs differ in."""
    return isinstance(value, float)


if __name__ == "__main__":
    main()
