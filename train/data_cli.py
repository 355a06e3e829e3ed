"""The arguments of the commands about data sets."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli import JsonOption, Output


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
