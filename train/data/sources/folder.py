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
    readable,
    shorten,
)
from train.data.sources.tree import files_below, listed

IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
)


def read_class_folders(folder: Path) -> Source:
    """Read ``FOLDER/CLASS/...`` or ``FOLDER/{train,val,test}/CLASS/...``.

    A class's images may lie in folders below its own; links to folders are followed. Names of
    files decide which are images. Images beside the class or split folders are left out and noted.

    Raises:
        DataError: there are no class folders, or an empty one, splits disagree about classes, no
            split is for training, or a folder cannot be listed.
    """
    splits = _split_folders(folder)
    found = {split: _class_files(path, folder) for split, path in splits.items()}
    names = order_class_names(set(found["train"]))
    ignored: list[str] = []
    parts: dict[SplitName, Part] = {}
    for split, classes in found.items():
        unknown = sorted(set(classes) - set(names))
        if unknown:
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
    loose = [
        os.path.relpath(path / image, folder)
        for path in sorted({folder, *splits.values()})
        for image in _listed(path)[1]
    ]
    return Source(f"folder {folder.resolve().name}", names, parts, _notes(ignored, loose))


def _notes(ignored: list[str], loose: list[str]) -> tuple[str, ...]:
    notes = []
    if ignored:
        kinds = Counter(Path(name).suffix.lower() or "none" for name in ignored)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        notes.append(
            f"left out files that are no images by their names: {len(ignored)} ({listed}), "
            f"such as {readable(ignored[0])}"
        )
    if loose:
        notes.append(
            f"left out images that lie in no class folder: {len(loose)}, "
            f"such as {readable(loose[0])}"
        )
    return tuple(notes)


def _split_folders(folder: Path) -> dict[SplitName, Path]:
    children, _ = _listed(folder)
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
    found = ", ".join(path.name for path in by_split.values())
    if "train" not in by_split:
        # One of several classes may be called test, and so may one that images lie right in.
        if (
            by_split
            and (len(by_split) > 1 or not others)
            and all(map(_holds_classes, by_split.values()))
        ):
            beside = f", beside {shorten(others)}," if others else ""
            raise DataError(
                f"{folder} holds {found}{beside} but no train; "
                "call the folder of the training split train"
            )
        return {"train": folder}
    if others:
        raise DataError(
            f"{folder} holds {shorten(others)} beside {found}; "
            "it must hold either split folders alone or class folders alone"
        )
    return by_split


def _holds_classes(folder: Path) -> bool:
    folders, images = _listed(folder)
    return bool(folders) and not images


def _class_files(folder: Path, root: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Image files and other files of each class folder, as paths below ``root``."""
    folders, loose = _listed(folder)
    classes = {child.name: _files_below(child, root) for child in folders}
    if not classes:
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
    beside = os.path.relpath(folder, root) + os.sep
    for file in files_below(folder):
        (images if _is_image(file) else others).append(beside + file)
    return images, others


def _listed(folder: Path) -> tuple[list[Path], list[str]]:
    """The folders that lie right in a folder, and the names of the images that do."""
    folders, files = listed(folder)
    return folders, [file.name for file in files if _is_image(file.name)]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
