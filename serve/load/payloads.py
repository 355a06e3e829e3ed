"""The requests of a load: real images, or random ones of the size that the model takes."""

import json
import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
import numpy.typing as npt

from cluster.errors import DataError, UserError
from cluster.images import ImageError, ImageSpec, decode_image, encode_png
from serve.client import binary_infer, model_path
from serve.load.generator import Endpoint

Images = npt.NDArray[np.uint8]

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_MAX_BYTES = 512 * 2**20
_NUM_RANDOM = 64


class Form(StrEnum):
    """How images are sent."""

    IMAGE = "image"
    """Encoded, to ``classify``."""
    TENSOR = "tensor"
    """To ``infer``: a JSON header and raw pixels, answered with raw logits."""
    RAW = "raw"
    """To ``infer``: nothing but pixels, answered with raw logits."""
    JSON = "json"
    """To ``infer``: pixels as JSON numbers, answered with JSON."""


def split_url(text: str) -> tuple[SplitResult, Endpoint]:
    """Take a server's address apart.

    Raises:
        UserError: it is not one.
    """
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    # What is sent is put together from it as it stands, and HTTP takes nothing else than ASCII.
    if url.scheme not in ("http", "https") or not url.hostname or url.query or not text.isascii():
        raise UserError(f"--url {text!r}: expected http://host:port")
    tls = url.scheme == "https"
    return url, Endpoint(url.hostname, port or (443 if tls else 80), tls)


def read_images(paths: Sequence[Path]) -> list[tuple[Path, bytes]]:
    """Encoded images from files, and from all image files under folders, in order of their names.

    Raises:
        UserError: a file cannot be read, there is no image, or they are more than memory is for.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
            files += sorted(file for file in inside if file.is_file())
        else:
            files.append(path)
    if paths and not files:
        raise UserError(f"no image files under {', '.join(map(str, paths))}")
    images = []
    size = 0
    for file in files:
        try:
            images.append((file, file.read_bytes()))
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from None
        size += len(images[-1][1])
        if size > _MAX_BYTES:
            raise UserError(
                f"the files are more than the {_MAX_BYTES // 2**20} MiB that a load keeps in "
                "memory: name fewer"
            )
    return images


def build_requests(
    url: SplitResult,
    model: str,
    version: str | None,
    form: Form,
    files: Sequence[tuple[Path, bytes]],
    metadata: dict[str, Any],
    *,
    batch: int,
    seed: int,
) -> list[bytes]:
    """Whole HTTP requests to send in turn, each other image once.

    Args:
        url: of the server.
        model: its name.
        version: one that is served, or None.
        form: how images are sent.
        files: encoded images; random pixels are drawn if there are none.
        metadata: of the model.
        batch: images of a request.
        seed: of the random pixels.

    Raises:
        UserError: a file is no image, or several images are to go where one can.
    """
    if form is Form.IMAGE and batch != 1:
        raise UserError("--batch: classify takes one image a request; use --as tensor, raw or json")
    spec = ImageSpec.model_validate(metadata["properties"]["image"])
    path = url.path.rstrip("/") + model_path(model, version)
    if form is Form.IMAGE:
        encoded = [data for _, data in files] or [
            *map(encode_png, _random(spec, _NUM_RANDOM, seed))
        ]
        headers = {"Content-Type": "application/octet-stream"}
        return [_post(url, f"{path}/classify", body, headers) for body in encoded]
    images = [_decode(file, data, spec) for file, data in files] or [
        *_random(spec, max(_NUM_RANDOM, batch), seed)
    ]
    # As many requests as let every image take part, the last filled up from the first.
    batches = (
        np.stack([images[(start + offset) % len(images)] for offset in range(batch)])
        for start in range(0, math.ceil(len(images) / batch) * batch, batch)
    )
    return [_post(url, f"{path}/infer", *_infer(form, one)) for one in batches]


def _random(spec: ImageSpec, count: int, seed: int) -> Iterable[Images]:
    draw = np.random.default_rng(seed)
    return iter(draw.integers(0, 256, (count, *spec.shape), dtype=np.uint8))


def _decode(file: Path, data: bytes, spec: ImageSpec) -> Images:
    try:
        return decode_image(data, spec)
    except ImageError as error:
        raise DataError(f"{file}: {error}") from None


def _infer(form: Form, images: Images) -> tuple[bytes, dict[str, str]]:
    """``images``: uint8 ``[n, channels, height, width]``."""
    if form is Form.TENSOR:
        return binary_infer(images)
    if form is Form.RAW:
        headers = {"Inference-Header-Content-Length": "0"}
        return images.tobytes(), {"Content-Type": "application/octet-stream", **headers}
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(images.shape),
        "data": images.ravel().tolist(),
    }
    return json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"}


def _post(url: SplitResult, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {url.netloc.rpartition('@')[2]}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
