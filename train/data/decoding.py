"""Decoding chunks of images: what a process does with them, and what it tells about them."""

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from cluster.dataset import SPLITS, SplitName
from cluster.images import (
    OWN_MAX_BYTES,
    OWN_MAX_PIXELS,
    ImageError,
    ImageHeader,
    ImageSpec,
    decode_image,
    encode_png,
    fit_pixels,
    read_header,
)
from train.data.fingerprints import fingerprint
from train.data.scratch import Scratch
from train.data.sources.source import CHUNK_BYTES, Part, Payload


@dataclass(frozen=True)
class Likeness:
    """What images have in common, if a look at one of them told what all become."""

    size: tuple[int, int] | None
    """Width and height; None if they may differ."""
    gray: bool
    """Whether all must be gray."""

    def holds(self, header: ImageHeader) -> bool:
        """Whether an image is like this."""
        return self.size in (None, (header.width, header.height)) and not (
            self.gray and header.channels == 3
        )


@dataclass(frozen=True)
class DecodeTask:
    """A chunk of one part, and where its images go."""

    payload: Payload
    spec: ImageSpec
    likeness: Likeness | None
    """What the spec takes for granted."""
    codes: npt.NDArray[np.int8]
    """int8 ``[n]``: each image's split, as an index of SPLITS."""
    places: npt.NDArray[np.int64]
    """int64 ``[n]``: its row there. Images of one split follow one another."""
    pixels: Mapping[SplitName, Scratch]
    """Empty if images stay encoded."""
    thumbnails: Mapping[SplitName, Scratch]


@dataclass(frozen=True)
class Decoded:
    """What is known of a chunk's images; of a bad one nothing but why."""

    bad: tuple[tuple[int, str], ...]
    """Row in the chunk, and the reason."""
    unlike: bool
    """Whether one is not what the spec takes for granted; nothing else holds then."""
    sums: npt.NDArray[np.int64]
    """int64 ``[n, channels]``: the sum of each image's bytes."""
    squares: npt.NDArray[np.int64]
    """Of their squares."""
    digests: npt.NDArray[np.uint64]
    hashes: npt.NDArray[np.uint64]


def decode_tasks(
    part: Part,
    spec: ImageSpec,
    likeness: Likeness | None,
    codes: npt.NDArray[np.int8],
    places: npt.NDArray[np.int64],
    pixels: Mapping[SplitName, Scratch],
    thumbnails: Mapping[SplitName, Scratch],
) -> Iterator[DecodeTask]:
    """The tasks of a part, in order. Arguments as in :class:`DecodeTask`, of the whole part."""
    row = 0
    most = max(1, CHUNK_BYTES // int(np.prod(spec.shape)))
    for chunk in part.pictures.chunks():
        for start in range(0, len(chunk), most):
            payload = chunk[start : start + most]
            rows = slice(row, row + len(payload))
            row = rows.stop
            yield DecodeTask(payload, spec, likeness, codes[rows], places[rows], pixels, thumbnails)


def decode_chunk(task: DecodeTask) -> Decoded:
    """Decode a chunk and write its images where they belong.

    Raises:
        OSError: they cannot be written.
    """
    images, bad, unlike = _decode(task.payload, task.spec, task.likeness)
    prints = fingerprint(images)
    for code in np.unique(task.codes):
        chosen = task.codes == code
        first = int(task.places[chosen][0])
        split = SPLITS[code]
        if split in task.pixels:
            task.pixels[split].write(first, images[chosen])
        task.thumbnails[split].write(first, prints.thumbnails[chosen])
    # Sums over one row of at most 4096 bytes (MAX_SIDE) fit into 32 bits, which is quicker.
    squares = np.einsum("nchw,nchw->nch", images, images, dtype=np.uint32)
    return Decoded(
        bad,
        unlike,
        images.sum(3, dtype=np.uint32).sum(2, dtype=np.int64),
        squares.sum(2, dtype=np.int64),
        prints.digests,
        prints.hashes,
    )


def read_headers(payload: Payload) -> list[ImageHeader | str]:
    """The header of each image of a chunk; of a bad one, why it is bad."""
    return [_read_header(picture) for picture in payload]


def encoded_bytes(picture: bytes | str | npt.NDArray[np.uint8]) -> bytes:
    """An image as it is kept encoded: as it was found, or, of pixels, as PNG."""
    return encode_png(picture) if isinstance(picture, np.ndarray) else _read(picture)


def _decode(
    payload: Payload, spec: ImageSpec, likeness: Likeness | None
) -> tuple[npt.NDArray[np.uint8], tuple[tuple[int, str], ...], bool]:
    if isinstance(payload, np.ndarray) and payload.shape[1:] == spec.shape:
        return payload, (), False
    images = np.zeros((len(payload), *spec.shape), np.uint8)
    accept = None if likeness is None else likeness.holds
    bad = []
    for row, picture in enumerate(payload):
        try:
            if isinstance(picture, np.ndarray):
                if accept is not None and not accept(_header_of_pixels(picture)):
                    return images, (), True
                images[row] = fit_pixels(picture, spec)
            else:
                images[row] = decode_image(
                    _read(picture),
                    spec,
                    max_bytes=OWN_MAX_BYTES,
                    max_pixels=OWN_MAX_PIXELS,
                    accept=accept,
                )
        except ImageError as error:
            if error.reason == "unlike":
                return images, (), True
            bad.append((row, str(error)))
        except OSError as error:
            bad.append((row, error.strerror or str(error)))
    return images, tuple(bad), False


def _read_header(picture: bytes | str | npt.NDArray[np.uint8]) -> ImageHeader | str:
    try:
        if isinstance(picture, np.ndarray):
            return _header_of_pixels(picture)
        if isinstance(picture, bytes):
            return read_header(io.BytesIO(picture), max_pixels=OWN_MAX_PIXELS)
        with _open(picture) as file:
            return read_header(file, max_pixels=OWN_MAX_PIXELS)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _header_of_pixels(picture: npt.NDArray[np.uint8]) -> ImageHeader:
    channels, height, width = picture.shape
    return ImageHeader(width, height, 1 if channels == 1 else 3)


def _read(picture: bytes | str) -> bytes:
    if isinstance(picture, bytes):
        return picture
    with _open(picture) as file:
        size = os.fstat(file.fileno()).st_size
        if size > OWN_MAX_BYTES:
            raise ImageError(f"file of {size} bytes; at most {OWN_MAX_BYTES} are allowed", "size")
        return file.read()


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except ValueError as error:
        raise ImageError(f"not the name of a file: {error}", "content") from None
