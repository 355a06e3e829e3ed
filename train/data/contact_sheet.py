"""One picture of a data set: some images of each class."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cluster.dataset import ImageSplit
from cluster.images import ImageSpec

CONTACT_SHEET = "contact-sheet.png"
_MARGIN, _LEFT = 4, 160
_SMALLEST_CELL, _LARGEST_CELL = 48, 128
_MAX_CLASSES = 40


def write_contact_sheet(
    path: Path,
    part: ImageSplit,
    spec: ImageSpec,
    class_names: tuple[str, ...],
    columns: int = 12,
) -> None:
    """Draw the first images of each class, a row a class, as one PNG."""
    cell = min(max(_SMALLEST_CELL, spec.width, spec.height), _LARGEST_CELL)
    shown = class_names[:_MAX_CLASSES]
    size = (_LEFT + columns * (cell + _MARGIN), len(shown) * (cell + _MARGIN))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for row, name in enumerate(shown):
        top = row * (cell + _MARGIN)
        draw.text((6, top + cell // 2 - 8), name[:20], fill="black", font=font)
        images = part.take(np.flatnonzero(part.labels == row)[:columns])
        for column, pixels in enumerate(images):
            sheet.paste(_tile(pixels, cell), (_LEFT + column * (cell + _MARGIN), top))
    sheet.save(path)


def _tile(pixels: npt.NDArray[np.uint8], cell: int) -> Image.Image:
    """An image that fills a cell along its longer side."""
    hwc = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(hwc))
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Enlarged pixels stay pixels.
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR
    return image.resize(size, how)
