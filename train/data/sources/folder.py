"""A folder of class folders, with or without split folders above them."""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from cluster.dataset import SplitName
from cluster.errors import DataError
from train.data.sources.source import (
    SPLIT_NAMES,
    FilePictures,
    Part,
    Source,
    order_class_names,
    shorten,
)

IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
)
_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""What systems leave in folders; anything that begins with a dot counts as well."""


def read_class_folders(folder: Path) -> Source:
    """Read ``FOLDER/CLASS/...`` or ``FOLDER/{train,val,test}/CLASS/...``.

    A class's images may lie in folders below its own. Names of files decide which are images.

    Raises:
        DataError: there are no class folders, or an empty one, or splits disagree about classes.
    """
    splits = _split_folders(folder)
    found = {split: _class_files(path, folder) for split, path in splits.items()}
    names = order_class_names(set(found.get("train", {})))
    ignored: list[str] = []
    parts: dict[SplitName, Part] = {}
    for split, classes in found.items():
        unknown = sorted(set(classes) - set(names))
        if unknown and "train" in found:
            raise DataError(
                f"{splits[split]} holds class folders that train lacks: {shorten(unknown)}"
            )
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            images, others = classes.get(name, ([], []))
            paths += images
            labels += [label] * len(images)
            ignored += others
        parts[split] = Part(FilePictures(folder, paths), np.array(labels, np.int64))
    kinds = Counter(Path(name).suffix.lower() or "none" for name in ignored)
    notes = (
        (
            f"left out {len(ignored)} files that are no images by their names "
            f"({', '.join(f'{count} {kind}' for kind, count in kinds.most_common(5))}), "
            f"such as {ignored[0]}",
        )
        if ignored
        else ()
    )
    return Source(f"folder {folder.resolve().name}", names, parts, notes)


def _split_folders(folder: Path) -> dict[SplitName, Path]:
    children = _folders(folder)
    by_split: dict[SplitName, Path] = {}
    others = [child.name for child in children if child.name.lower() not in SPLIT_NAMES]
    for child in children:
        split = SPLIT_NAMES.get(child.name.lower())
        if split is not None:
            if split in by_split:
                raise DataError(
                    f"{folder} holds {by_split[split].name} and {child.name}, which mean the same"
                )
            by_split[split] = child
    if "train" not in by_split:
        return {"train": folder}
    if others:
        found = ", ".join(path.name for path in by_split.values())
        raise DataError(
            f"{folder} holds {shorten(others)} beside {found}; "
            "it must hold either split folders alone or class folders alone"
        )
    return by_split


def _class_files(folder: Path, root: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Image files and other files of each class folder, as paths below ``root``."""
    classes = {child.name: _files_below(child, root) for child in _folders(folder)}
    if not classes:
        loose = any(_is_image(child) for child in folder.iterdir())
        raise DataError(
            f"{folder} holds {'images but ' if loose else ''}no class folders; "
            "expected FOLDER/CLASS/IMAGE, or a CSV file of paths and labels"
        )
    empty = [name for name, (images, _) in sorted(classes.items()) if not images]
    if empty:
        raise DataError(f"{folder}: class folder {shorten(empty)} holds no image")
    return classes


def _files_below(folder: Path, root: Path) -> tuple[list[str], list[str]]:
    images: list[str] = []
    others: list[str] = []
    for at, folders, files in os.walk(folder):
        # Sorted, so that the order, and with it the splits, are the same everywhere.
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        for name in sorted(files):
            if not _is_junk(name):
                path = os.path.relpath(os.path.join(at, name), root)
                (images if _is_image(Path(name)) else others).append(path)
    return images, others


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(
            child for child in folder.iterdir() if child.is_dir() and not _is_junk(child.name)
        )
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from None


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES
