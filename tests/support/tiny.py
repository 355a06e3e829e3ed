"""What is common to the tests of model ``tiny``, and what a client sends to it."""

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from serve.config import ReplicaConfig

ROOT = "/v2/models/tiny"
PIXELS = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
CONFIG = ReplicaConfig(max_body_bytes=4096, max_pixels=10_000, max_queued=8, max_batch_size=4)


class ListSink:
    """Remembers what a meter hands on."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, dict[str, str]]] = []

    def count(self, name: str, value: int, tags: Any) -> None:
        self.values.append((name, value, dict(tags)))

    def observe(self, name: str, value: float, tags: Any) -> None:
        self.values.append((name, value, dict(tags)))


def png(pixels: Any = PIXELS) -> bytes:
    """An encoded image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def infer_body() -> bytes:
    """The same image as JSON."""
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 2, 3]}
    return json.dumps({"inputs": [{**tensor, "data": PIXELS.ravel().tolist()}]}).encode()
