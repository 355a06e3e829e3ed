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
            help="digits, mnist, fashion-mnist, cifar10 or cifar100; a folder of class folders, "
            "with or without train, val and test folders above them; a folder of Parquet or IDX "
            "files; a Parquet file; or a CSV file of paths and labels."
        ),
    ],
    name: Annotated[str, typer.Option(help="What the data set will be called.")],
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTH[xHEIGHT]",
            help="Bring images to this size. [default: the one that all of them have]",
        ),
    ] = None,
    channels: Annotated[
        Literal["1", "3"] | None,
        typer.Option(help="Gray or color. [default: gray if all images are]"),
    ] = None,
    resize: Annotated[
        Literal["crop", "pad", "stretch"] | None,
        typer.Option(
            help="Cut what is over, fit inside on black, or ignore proportions; a server does the "
            "same. [default: crop]"
        ),
    ] = None,
    normalize: Annotated[
        Literal["dataset", "half", "none"] | None,
        typer.Option(
            help="What models normalise with: the training images' mean and deviation, 0.5 and "
            "0.5, or nothing. [default: dataset; with --append the version's]"
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Shares of train, val and test, without those that the source brings. "
            "[default: 0.7,0.1,0.2; where there is a test split 0.9,0.1]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which image goes to which split.")] = 0,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Begin with the newest version's images, each in the split that it is in; images "
            "that are there already are left out.",
        ),
    ] = False,
    on_bad: Annotated[
        Literal["error", "skip"],
        typer.Option(help="What files that cannot be decoded do: stop it all, or be left out."),
    ] = "error",
    storage: Annotated[
        Literal["auto", "pixels", "encoded"],
        typer.Option(
            help="Keep images decoded, or as they are, to be decoded while training. auto: decoded "
            "if that takes less than 2 GiB."
        ),
    ] = "auto",
    root: Annotated[
        Path | None, typer.Option(help="Folder that holds a named source's files.")
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(help="Names in label order, separated by commas.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column of images or paths, where it is not clear.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of labels, where it is not clear.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read images once and keep them as a data set that workers map into memory.

    Every file is decoded, on all cores, to what a person sees: upright, on white where it is
    transparent, the first frame of an animation. The splits hold every class in the same
    proportion. Reading the same source again makes no new version. Copies across splits and images
    under two labels are told. docs/data.md says more about the kinds of sources.
    """
    from train.data.options import IngestOptions, parse_size
    from train.data.splitting import parse_shares
    from train.data_commands import run_ingest

    options = IngestOptions(
        size=parse_size(size) if size else None,
        channels=None if channels is None else 1 if channels == "1" else 3,
        resize=resize,
        normalize=normalize,
        shares=parse_shares(split) if split else None,
        seed=seed,
        storage=storage,
        on_bad=on_bad,
        append=append,
    )
    run_ingest(
        source,
        name,
        options,
        Output(as_json),
        root=root,
        class_names=tuple(part.strip() for part in class_names.split(",")) if class_names else None,
        image_column=image_column,
        label_column=label_column,
    )


@app.command()
def data(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME[@VERSION]]", help="Which data set.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the data sets, or show one.

    Of one: images of each split and class, statistics, what it was made from, where its picture is,
    and images that are there twice, across splits or under two labels.
    """
    from train.data_commands import run_data

    run_data(name, Output(as_json))


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
    model: Annotated[
        str | None,
        typer.Option(
            help="Another network than the recipe's: net, resnet, any classifier of torchvision "
            "(resnet18), timm:NAME, or FILE.py:FACTORY; docs/models.md says more."
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Begin with these weights (.pth, .safetensors), or with those that 'torchvision' "
            "or 'timm' publishes; the last layer may be for other classes.",
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
    from train.models.choice import choose_model
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
    if pretrained is not None:
        changes["pretrained"] = pretrained
    if model is not None:
        changes["model"] = choose_model(model, changes.get("model", {}))
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


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Weights (.pth, .safetensors), or a graph (.onnx).")],
    data: Annotated[
        str, typer.Option(help="Data set that it is measured on, NAME or NAME@VERSION.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The network of the weights, as in `train fit --model`; an ONNX graph needs none."
        ),
    ] = None,
    normalize: Annotated[
        str,
        typer.Option(
            help="What the model takes pixels as: dataset, imagenet, half (-1 to 1), none (0 to "
            "1), bytes (0 to 255), or 'mean=0.5,0.5,0.5;std=0.2,0.2,0.2'. auto: what gives the "
            "lowest loss on the validation split."
        ),
    ] = "auto",
    outputs: Annotated[
        Literal["logits", "probabilities"],
        typer.Option("--output", help="What the model gives for each class."),
    ] = "logits",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Such as model.options.width=32; repeatable."
        ),
    ] = None,
    run_name: Annotated[
        str | None, typer.Option("--name", help="Name of the run. [default: made up]")
    ] = None,
    register: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Register as a version of this model.")
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(help="Point this alias at the version, such as champion; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a run and a bundle of a model that was trained elsewhere.

    It is measured on the test split; the bundle is checked against the model as it came over that
    whole split, as `train export` does. From there on it is a run like any other: evaluate, export,
    serve. Nothing is unpickled: of a whole pickled model, save the state_dict or the ONNX graph.
    """
    from cluster.config import parse_overrides
    from train.commands import run_import
    from train.importing import ImportRequest

    request = ImportRequest(
        data=data,
        model=model,
        normalize=normalize,
        output=outputs,
        changes=parse_overrides(overrides or []),
    )
    run_import(
        file,
        request,
        Output(as_json),
        run_name=run_name,
        register=register,
        aliases=alias or [],
    )


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
