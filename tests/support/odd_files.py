"""Image files of every odd kind, beside what a person sees in each."""

from pathlib import Path
from typing import Any

import numpy as np
from pictures import encode, picture
from PIL import Image, ImageOps


def odd_files(folder: Path) -> dict[str, Image.Image]:
    """Write them; gives by name what a person sees at 8x8: Pillow's own rendering."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Image.Image] = {}
    exif = Image.Exif()
    exif[0x0112] = 6  # "Rotate 90 degrees clockwise to view".

    def add(name: str, image: Image.Image, shown: Image.Image, **options: Any) -> None:
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name[-3:].upper())
        (folder / name).write_bytes(encode(image, kind, **options))
        seen[name] = shown

    color, wide = picture(1), picture(2, (12, 8))
    clear = color.copy()
    clear.putalpha(picture(3, mode="L"))
    white = Image.new("RGBA", (8, 8), "white")
    add("gray.png", picture(4, mode="L"), picture(4, mode="L").convert("RGB"))
    add("color.png", color, color)
    add("clear.png", clear, Image.alpha_composite(white, clear).convert("RGB"))
    palette = color.quantize(16)
    add("palette.png", palette, palette.convert("RGB"))
    add("bits.png", picture(5, mode="1"), picture(5, mode="1").convert("RGB"))
    add("size.bmp", wide, ImageOps.fit(wide, (8, 8), Image.Resampling.BILINEAR))
    turned = wide.transpose(Image.Transpose.ROTATE_270)
    add("turned.png", wide, ImageOps.fit(turned, (8, 8), Image.Resampling.BILINEAR), exif=exif)
    add("turned.tif", wide, ImageOps.fit(turned, (8, 8), Image.Resampling.BILINEAR), exif=exif)
    samples = np.random.default_rng(6).integers(0, 65536, (8, 8), dtype=np.uint16)
    add("deep.png", Image.fromarray(samples), Image.fromarray((samples // 257).astype("u1")))
    frames = [picture(seed).quantize(32) for seed in (7, 8)]
    add("moving.gif", frames[0], frames[0], save_all=True, append_images=frames[1:])
    for name, image in (("cmyk.jpg", picture(9, mode="CMYK")), ("photo.jpg", picture(10))):
        add(name, image, image)
        with Image.open(folder / name) as written:
            seen[name] = written.convert("RGB")
    return seen
