"""The commands of the training stage: ``python -m train``."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli import JsonOption, Output, new_app, run_program
from train import data_cli

app = new_app(
    "Turn images into a checked, registered model.\n\n"
    "A first run, from nothing: python -m train ingest digits --name digits, then "
    "python -m train fit digits --register digits. Data sets, runs and the registry "
    "are kept in the folder that RAYBRIDGE_STORE names (~/.local/share/raybridge by default)."
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or 'latest'.")]


WorkersOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN:MAX",
        help="Data-parallel workers; with MIN:MAX the run goes on with what is free, down to MIN. "
        "[default: the configuration's]",
    ),
]

app.command()(data_cli.ingest)
app.command()(data_cli.data)


@app.command()
def fit(
    recipe: Annotated[
        str, typer.Argument(help="Where the configuration begins; `train recipes` lists them.")
    ],
    data: Annotated[
        str | None, typer.Option(help="Data set, NAME or NAME@VERSION. [default: the recipe's]")
    ] = None,
    workers: WorkersOption = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Weights that depend on configuration and seed alone, to the bit, on CPUs: not "
            "on the number of workers, a kill or a resume.",
        ),
    ] = False,
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
            help="Another network than the recipe's: net, resnet, resnet20, resnet56, airbench, "
            "any classifier of torchvision (resnet18), timm:NAME, or FILE.py:FACTORY; "
            "docs/models.md says more."
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Begin with these: a file (.pth, .safetensors), a bundle's folder, "
            "registry:MODEL[@VERSION], or 'torchvision' or 'timm' for what is published there. "
            "The last layer may be for other classes.",
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
    from train.arguments import parse_workers
    from train.models.choice import choose_model
    from train.recipes import get_recipe

    output = Output(as_json)
    config = get_recipe(recipe)
    if config_file is not None:
        config = config.with_changes(read_config_file(config_file), f"--config {config_file}")
    # Flags and overrides are applied together: either alone may not be valid yet.
    changes = parse_overrides(overrides or [])
    if workers is not None:
        changes["resources"] = {**changes.get("resources", {}), **parse_workers(workers)}
    if exact:
        changes["exact"] = changes.get("exact") or {}
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
    workers: WorkersOption = None,
    register: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Export and register afterwards.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was cut off, or train a finished one for longer.

    Begins at the newest checkpoint that can be read, in the middle of an epoch if need be.
    """
    from train.arguments import parse_workers
    from train.commands import run_resume

    resources = None if workers is None else parse_workers(workers)
    run_resume(run, Output(as_json), epochs=epochs, resources=resources, register=register)


@app.command()
def reproduce(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|BUNDLE|registry:MODEL[@VERSION]",
            help="Name of a run, or 'latest'; folder or digest of a bundle; or a registered model, "
            "its champion or the version or alias that is named.",
        ),
    ],
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN:MAX",
            help="Of an exact run, which has the same weights with any number. [default: the "
            "run's]",
        ),
    ] = None,
    run_name: Annotated[
        str | None, typer.Option("--name", help="Name of the new run. [default: made up]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the run of a model once more, and compare the weights, to the bit.

    Trains with the code and the libraries that are here, and says what of commit, lock file,
    libraries and CPU was different then. Ends with exit code 0 if the weights are identical, else
    with 1 and what may be the reason.
    """
    from train.arguments import parse_workers
    from train.commands import run_reproduce

    resources = None if workers is None else parse_workers(workers)
    run_reproduce(target, Output(as_json), run_name=run_name, resources=resources)


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
    data: Annotated[
        str | None, typer.Option(help="Another data set of the same classes and image size.")
    ] = None,
    tta: Annotated[
        Literal["mirror", "mirror-translate"] | None,
        typer.Option(
            help="Also measure with logits averaged over views of each image: it and its mirror "
            "image, or also both moved by a pixel up left and down right (six views).",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy, loss, per-class figures, confusion and calibration of a finished run.

    Every image counts once. On the run's own data the figures are kept and the report is renewed.
    """
    from train.model_commands import run_evaluate

    run_evaluate(run, Output(as_json), split=split, data=data, views=tta)


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
    from train.model_commands import run_export

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
    from train.importing import ImportRequest
    from train.model_commands import run_import

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


@app.command()
def fields(
    part: Annotated[
        str | None,
        typer.Argument(help="Such as optim, optim.muon or augment.erasing. [default: all]"),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/configuration.md instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the fields of a configuration: what each takes, its default and its meaning."""
    from train.fields import find_sections, to_markdown

    output = Output(as_json)
    sections = find_sections(part)
    if markdown:
        output.say(to_markdown(sections))
    else:
        for section in sections:
            output.table(
                f"{section.title}: {section.meaning}",
                ("field", "values", "default", "meaning"),
                [(row.name, row.values, row.default, row.meaning) for row in section.rows],
            )
    output.result(
        {section.title: {row.name: vars(row) for row in section.rows} for section in sections}
    )


if __name__ == "__main__":
    run_program(app, "python -m train")
