"""Sources made of small pictures: folders of classes, Parquet files, tables."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """A picture of noise, another one for each seed."""
    width, height = size
    samples = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(samples).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_class_folders(
    folder: Path,
    classes: Sequence[str] = ("cat", "dog"),
    per_class: int = 10,
    *,
    first: int = 0,
    size: tuple[int, int] = (8, 8),
    mode: str = "RGB",
) -> Path:
    """``FOLDER/CLASS/NUMBER.png``; pictures are numbered from ``first`` and all different."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            seed = first + label * 1000 + number
            (folder / name / f"{seed:04}.png").write_bytes(encode(picture(seed, size, mode)))
    return folder


def write_parquet(
    file: Path,
    blobs: Sequence[bytes | None],
    labels: Sequence[int | float | str | None],
    names: Sequence[str] | None = ("cat", "dog"),
    *,
    struct: bool = True,
    paths: Sequence[str | None] | None = None,
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> Path:
    """Images as the ``datasets`` library writes them; ``extra`` are more ClassLabel columns."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    paths = paths or [None] * len(blobs)
    cells = [{"bytes": blob, "path": path} for blob, path in zip(blobs, paths, strict=True)]
    columns: dict[str, pa.Array] = {
        "img": pa.array(cells if struct else list(blobs), kind),
        "label": pa.array(labels),
    }
    features: dict[str, Any] = {"img": {"_type": "Image"}}
    if names is not None:
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    for name, values in (extra or {}).items():
        columns[name] = pa.array(values)
        features[name] = {"names": [str(value) for value in sorted(set(values))]}
        features[name]["_type"] = "ClassLabel"
    table = pa.table(columns)
    if names is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=7)
    return file


def pngs(count: int, first: int = 0, **options: Any) -> list[bytes]:
    """Encoded pictures, all different."""
    return [encode(picture(first + number, **options)) for number in range(count)]
