"""One decoder for ingest and HTTP: a served image is prepared as the training images were."""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from cluster.config import Frozen
from cluster.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_BYTES = 10 * 2**20
MAX_PIXELS = 25_000_000
"""Bounds for what strangers send."""
MAX_SIDE = 4096
"""Pixels of what a model takes, across and down."""
OWN_MAX_BYTES = 2**28
OWN_MAX_PIXELS = 150_000_000
"""Bounds for the user's own files: ingest, and data sets of encoded images."""

# Where an orientation can stand. Pillow turns TIFF itself when it loads.
_ORIENTATION_KEYS = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
_TURNED_SIDEWAYS = frozenset({5, 6, 7, 8})
_ORIENTATION_TAG = 0x0112
_GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})
# Pillow warns about odd metadata and about sizes that are checked here. A filter for its modules,
# since `warnings.catch_warnings` changes the whole process and is not safe among threads.
_QUIET_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

Resize = Literal["crop", "pad", "stretch"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
Crop = Callable[[int, int], Box]
"""From the width and height of an image to the part of it that training looks at."""


class ImageError(DataError):
    """An image that cannot be used; ``reason`` lets a server choose its status code."""

    def __init__(
        self, message: str, reason: Literal["size", "format", "content", "unlike"]
    ) -> None:
        super().__init__(message)
        self.reason = reason


class ImageSpec(Frozen):
    """What an image becomes: uint8 ``[channels, height, width]``."""

    height: int = Field(ge=1, le=MAX_SIDE)
    width: int = Field(ge=1, le=MAX_SIDE)
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
    accept: Callable[["ImageHeader"], bool] | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode an encoded image to what a person would see, at the size that a model takes.

    The EXIF orientation is applied, transparency is laid on white, 16-bit samples are scaled to
    8 bits, palettes and CMYK are converted, and only the first frame of an animation is read.
    White in 32-bit samples is 1 (in floats), 255 or 65535: the first that none of them is above.

    Args:
        data: an encoded image in one of :data:`FORMATS`.
        spec: the target size, channels and way of resizing.
        max_bytes: refuse more encoded bytes than this.
        max_pixels: refuse a larger frame than this, before it is decoded.
        accept: told of its header before it is decoded; whether to go on.

    Returns:
        uint8 ``[channels, height, width]``.

    Raises:
        ImageError: too large (``size``), not an image of an allowed format (``format``), damaged
            (``content``), or not accepted (``unlike``).
    """
    _check_bytes(data, max_bytes)
    with _opened(io.BytesIO(data), max_pixels) as image:
        if accept is not None and not accept(_header(image)):
            raise ImageError("not what was expected", "unlike")
        return _to_array(_fit(_load_upright(image, spec.channels), spec))


def decode_crop(
    data: bytes,
    spec: ImageSpec,
    crop: Crop,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[np.uint8]:
    """Decode a part of an image, stretched to the size that a model takes: for training only.

    A JPEG that has more pixels there than needed is decoded at a half, a quarter or an eighth of
    its size, which is quicker.

    Args:
        data: an encoded image in one of :data:`FORMATS`.
        spec: the target size and channels.
        crop: chooses the part, of the upright image at its full size.
        max_bytes: refuse more encoded bytes than this.
        max_pixels: refuse a larger frame than this, before it is decoded.

    Returns:
        uint8 ``[channels, height, width]``.

    Raises:
        ImageError: as :func:`decode_image`.
    """
    _check_bytes(data, max_bytes)
    with _opened(io.BytesIO(data), max_pixels) as image:
        width, height = _upright_size(image)
        left, top, right, bottom = crop(width, height)
        surplus = min((right - left) / spec.width, (bottom - top) / spec.height)
        if image.format == "JPEG" and surplus >= 2:
            image.draft(None, (math.ceil(image.width / surplus), math.ceil(image.height / surplus)))
        upright = _load_upright(image, spec.channels)
        across, down = upright.width / width, upright.height / height
        box = (left * across, top * down, right * across, bottom * down)
        return _to_array(_resize_box(upright, box, (spec.width, spec.height)))


@dataclass(frozen=True)
class ImageHeader:
    """What can be said of an image before it is decoded."""

    width: int
    height: int
    """Upright: the orientation that its metadata asks for is applied."""
    channels: Literal[1, 3]
    """1 if it is gray by its format, transparency aside."""


def read_header(source: BinaryIO, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Read an image's size and kind without decoding it.

    Args:
        source: an open file, or bytes as ``io.BytesIO``.
        max_pixels: refuse a larger frame than this.

    Raises:
        ImageError: as :func:`decode_image`, as far as the header shows it.
    """
    with _opened(source, max_pixels) as image:
        return _header(image)


def fit_pixels(pixels: npt.NDArray[np.uint8], spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Bring a decoded image to ``spec``, as :func:`decode_image` does.

    Args:
        pixels: uint8 ``[channels, height, width]`` of 1 or 3 channels.
        spec: the target size, channels and way of resizing.
    """
    if pixels.shape == spec.shape:
        return pixels
    return _to_array(_fit(_to_mode(_from_array(pixels), spec.channels), spec))


def crop_pixels(pixels: npt.NDArray[np.uint8], crop: Crop) -> npt.NDArray[np.uint8]:
    """Stretch a part of a decoded image to the size of the whole.

    Args:
        pixels: uint8 ``[channels, height, width]``.
        crop: chooses the part.

    Returns:
        uint8 of the same shape.
    """
    image = _from_array(pixels)
    return _to_array(_resize_box(image, crop(image.width, image.height), image.size))


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode uint8 ``[channels, height, width]`` as a lossless PNG."""
    buffer = io.BytesIO()
    _from_array(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _quiet_pillow() -> None:
    if _QUIET_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET_PILLOW[3].pattern)


def _check_bytes(data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise ImageError(f"image of {len(data)} bytes; at most {max_bytes} are allowed", "size")


@contextlib.contextmanager
def _opened(source: BinaryIO, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose header was read; what goes wrong with it inside becomes an ImageError."""
    _quiet_pillow()
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(
                    f"image of {image.width}x{image.height} pixels; "
                    f"at most {max_pixels} pixels are allowed",
                    "size",
                )
            yield image
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise many kinds on damaged data
        raise _image_error(error) from None


def _load_upright(image: Image.Image, channels: int) -> Image.Image:
    image.load()
    if not _ORIENTATION_KEYS.isdisjoint(image.info):
        ImageOps.exif_transpose(image, in_place=True)
    return _to_mode(image, channels)


def _header(image: Image.Image) -> ImageHeader:
    width, height = _upright_size(image)
    gray = image.mode in _GRAY_MODES or image.mode.startswith("I;16")
    return ImageHeader(width, height, 1 if gray else 3)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as they will be once the orientation is applied."""
    # TIFF gives its size upright; where there is no metadata there is nothing to ask.
    if image.format != "TIFF" and not _ORIENTATION_KEYS.isdisjoint(image.info):
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG)
        if orientation in _TURNED_SIDEWAYS:
            return image.height, image.width
    return image.width, image.height


def _resize_box(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    left, top, right, bottom = box
    # Rounding may have put an edge a hair outside, which Pillow refuses.
    inside = (left, top, min(right, image.width), min(bottom, image.height))
    return image.resize(size, Image.Resampling.BILINEAR, box=inside)


def _image_error(error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"not an image; allowed: {', '.join(FORMATS)}", "format")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(str(error), "size")
    if isinstance(error, MemoryError):
        return ImageError("too large for the memory that is free", "size")
    return ImageError(f"damaged image: {str(error) or type(error).__name__}", "content")


def _from_array(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    hwc = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(hwc))


def _to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit samples at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_bytes_of_wide(np.asarray(image)))
    elif image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layered)
    wanted = "L" if channels == 1 else "RGB"
    # Pillow copies where there is nothing to convert.
    return image if image.mode == wanted else image.convert(wanted)


def _bytes_of_wide(samples: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Samples of 32 bits, whole or floating, as bytes.

    Nothing in such a file says how bright white is; the brightest sample tells: it is 1 if no
    sample of floats is above that, else 255, else 65535. What is no finite number is black.
    """
    values = np.where(np.isfinite(samples), samples, 0).astype(np.float32)
    highest = values.max()
    white = 65535 if highest > 255 else 1 if samples.dtype.kind == "f" and highest <= 1 else 255
    return np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8)


def _fit(image: Image.Image, spec: ImageSpec) -> Image.Image:
    size = (spec.width, spec.height)
    if image.size == size:
        return image
    if spec.resize == "stretch":
        return image.resize(size, Image.Resampling.BILINEAR)
    if spec.resize == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
