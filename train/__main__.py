"""The commands of the training stage: ``python -m train``."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli import JsonOption, Output, main, new_app

app = new_app(
    "Turn images into a checked, registered model.\n\n"
    "A first run, from nothing: python -m train ingest digits --name digits, then "
    "python -m train fit digits --register digits. Data sets, runs and the registry "
    "are kept in the folder that RAYBRIDGE_STORE names (~/.local/share/raybridge by default)."
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or 'latest'.")]


@app.command()
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="'digits' (comes with scikit-learn), 'fashion-mnist' (found or downloaded), or a "
            "folder that holds the four IDX files of an MNIST-like data set."
        ),
    ],
    name: Annotated[str, typer.Option(help="What the data set will be called.")],
    root: Annotated[
        Path | None, typer.Option(help="Folder that holds a named source's files.")
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(help="Names in label order, separated by commas.")
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share of the training images for validation.")
    ] = 0.1,
    test_fraction: Annotated[
        float | None,
        typer.Option(help="Share for testing, if the source has no test split. [default: 0.2]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which image goes to which split.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Read images once and keep them as a data set that workers map into memory.

    The splits hold every class in the same proportion. Reading the same source again makes no new
    version. A picture of some images of each class, contact-sheet.png, is kept beside the data.
    """
    from cluster.settings import Settings
    from cluster.store import Store
    from train.data.ingest import CONTACT_SHEET
    from train.data.ingest import ingest as write_dataset
    from train.data.sources import read_source

    output = Output(as_json)
    names = tuple(part.strip() for part in class_names.split(",")) if class_names else None
    found = read_source(source, root=root, class_names=names)
    dataset = write_dataset(
        Store(Settings.from_env().store),
        found,
        name,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        progress=output.say,
    )
    meta = dataset.meta
    output.table(
        f"{dataset.reference}: {meta.image.channels}x{meta.image.height}x{meta.image.width}, "
        f"{len(meta.class_names)} classes",
        ("split", "images", "fewest of a class", "most"),
        [
            (split, info.rows, min(info.class_counts), max(info.class_counts))
            for split, info in meta.splits.items()
        ],
    )
    output.say(f"digest {meta.digest[:16]}  picture {dataset.path / CONTACT_SHEET}")
    output.result(
        {
            "dataset": dataset.reference,
            "path": str(dataset.path),
            "digest": meta.digest,
            "classes": list(meta.class_names),
            "image": list(meta.image.shape),
            "splits": {split: info.rows for split, info in meta.splits.items()},
            "mean": list(meta.statistics.mean),
            "std": list(meta.statistics.std),
            "contact_sheet": str(dataset.path / CONTACT_SHEET),
        }
    )


@app.command()
def fit(
    recipe: Annotated[
        str, typer.Argument(help="Where the configuration begins; `train recipes` lists them.")
    ],
    data: Annotated[
        str | None, typer.Option(help="Data set, NAME or NAME@VERSION. [default: the recipe's]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Data-parallel workers. [default: the recipe's]")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="TOML or JSON file of fields that replace the recipe's."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="One field, such as optim.lr=0.01; repeatable."
        ),
    ] = None,
    run_name: Annotated[
        str | None, typer.Option("--name", help="Name of the run. [default: made up]")
    ] = None,
    register: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Export and register as a version of this model."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the effective configuration and stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train on the Ray cluster, evaluate on the test split, and write a report.

    Uses the cluster that is running (RAY_ADDRESS, `ray start`, `python -m cluster up`, or the one
    of the Ray job that this is part of), else a private one for as long as it takes. A worker that
    dies is replaced and the run goes on from its newest checkpoint, to the same weights.
    """
    from cluster.config import parse_overrides, read_config_file
    from train.recipes import get_recipe

    output = Output(as_json)
    config = get_recipe(recipe)
    if config_file is not None:
        config = config.with_changes(read_config_file(config_file), f"--config {config_file}")
    # Flags and overrides are applied together: either alone may not be valid yet.
    pairs = list(overrides or [])
    if workers is not None:
        pairs.append(f"resources.workers={workers}")
    changes = parse_overrides(pairs)
    if data is not None:
        changes["data"] = data
    config = config.with_changes(changes, "fit")
    if show:
        output.say(config.model_dump_json(indent=2))
        output.result(config.model_dump(mode="json"))
        return
    from train.commands import run_fit

    run_fit(config, output, run_name=run_name, register=register)


@app.command()
def resume(
    run: RunArgument,
    epochs: Annotated[int | None, typer.Option(min=1, help="Train to this epoch instead.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Go on with this many workers.")
    ] = None,
    register: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Export and register afterwards.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was cut off, or train a finished one for longer.

    Begins at the newest checkpoint that can be read, in the middle of an epoch if need be.
    """
    from train.commands import run_resume

    run_resume(run, Output(as_json), epochs=epochs, workers=workers, register=register)


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
    data: Annotated[
        str | None, typer.Option(help="Another data set of the same classes and image size.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy, loss, per-class figures, confusion and calibration of a finished run.

    Every image counts once. On the run's own data the figures are kept and the report is renewed.
    """
    from train.commands import run_evaluate

    run_evaluate(run, Output(as_json), split=split, data=data)


@app.command()
def export(
    run: RunArgument,
    model: Annotated[
        str | None, typer.Option(help="Name of the model. [default: the data set's]")
    ] = None,
    register: Annotated[
        bool, typer.Option("--register", help="Also make it a version in the registry.")
    ] = False,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            help="Register, and point this alias at the version, such as champion; repeatable."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the run's bundle: the folder that is served.

    PyTorch and ONNX Runtime must agree over the whole test split, and the bundle must open as a
    server opens it, before it can be seen.
    """
    from train.commands import run_export

    run_export(run, Output(as_json), model=model, register=register, aliases=alias or [])


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the recipes. `train fit RECIPE --show` prints one in full."""
    from train.recipes import RECIPES

    output = Output(as_json)
    rows = [
        (name, build(), (build.__doc__ or "").splitlines()[0]) for name, build in RECIPES.items()
    ]
    output.table(
        "Recipes",
        ("name", "model", "data", "epochs", "what it is"),
        [(name, c.model.name, c.data, c.epochs, text) for name, c, text in rows],
    )
    output.result({name: json.loads(c.model_dump_json()) for name, c, _ in rows})


if __name__ == "__main__":
    main(app, "python -m train")
