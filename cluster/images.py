"""One decoder for ingest and HTTP: a served image is prepared as the training images were."""

import io
import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from cluster.config import Frozen
from cluster.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_BYTES = 10 * 2**20
MAX_PIXELS = 25_000_000

Resize = Literal["crop", "pad", "stretch"]


class ImageError(DataError):
    """An image that cannot be used; ``reason`` lets a server choose its status code."""

    def __init__(self, message: str, reason: Literal["size", "format", "content"]) -> None:
        super().__init__(message)
        self.reason = reason


class ImageSpec(Frozen):
    """What an image becomes: uint8 ``[channels, height, width]``."""

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: Literal[1, 3]
    resize: Resize = "crop"
    """``crop`` fills the frame and cuts what is over, ``pad`` fits inside it on black,
    ``stretch`` ignores the aspect ratio."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        return (self.channels, self.height, self.width)


def decode_image(
    data: bytes,
    spec: ImageSpec,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[np.uint8]:
    """Decode an encoded image to what a person would see, at the size that a model takes.

    The EXIF orientation is applied, transparency is laid on white, 16-bit samples are scaled to
    8 bits, palettes and CMYK are converted, and only the first frame of an animation is read.

    Args:
        data: an encoded image in one of :data:`FORMATS`.
        spec: the target size, channels and way of resizing.
        max_bytes: refuse more encoded bytes than this.
        max_pixels: refuse a larger frame than this, before it is decoded.

    Returns:
        uint8 ``[channels, height, width]``.

    Raises:
        ImageError: too large (``size``), not an image of an allowed format (``format``), or
            damaged (``content``).
    """
    if len(data) > max_bytes:
        raise ImageError(f"image of {len(data)} bytes; at most {max_bytes} are allowed", "size")
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd metadata and about sizes that are checked below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ImageError(
                        f"image of {image.width}x{image.height} pixels; "
                        f"at most {max_pixels} pixels are allowed",
                        "size",
                    )
                image.load()
                upright = ImageOps.exif_transpose(image)
                fitted = _fit(_to_mode(upright, spec.channels), spec)
    except UnidentifiedImageError:
        raise ImageError(f"not an image; allowed: {', '.join(FORMATS)}", "format") from None
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(str(error), "size") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise many kinds on damaged data
        raise ImageError(f"damaged image: {error}", "content") from None
    pixels = np.asarray(fitted, dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if spec.channels == 1 else pixels.transpose(2, 0, 1))


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode uint8 ``[channels, height, width]`` as a lossless PNG."""
    hwc = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(hwc)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips 16-bit samples at 255 instead of scaling them.
        samples = np.asarray(image).astype(np.uint32)
        image = Image.fromarray((np.minimum(samples, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.clip(np.asarray(image), 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layered)
    return image.convert("L" if channels == 1 else "RGB")


def _fit(image: Image.Image, spec: ImageSpec) -> Image.Image:
    size = (spec.width, spec.height)
    if image.size == size:
        return image
    if spec.resize == "stretch":
        return image.resize(size, Image.Resampling.BILINEAR)
    if spec.resize == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
