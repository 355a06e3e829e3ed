"""A model of two versions behind HTTP: real Ray, real HAProxy."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bundles import write_bundle
from harness import free_port, run_module

from cluster.bundle import Bundle
from cluster.images import encode_png
from cluster.runtime import open_session
from cluster.settings import Settings
from cluster.tracking import Tracking

PIXELS = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
IMAGE = encode_png(PIXELS[None])


@dataclass(frozen=True)
class Served:
    """A model behind HTTP."""

    model: str
    url: str
    report: dict[str, Any]
    """What ``deploy --json`` printed."""
    bundles: dict[int, Bundle]

    @property
    def model_url(self) -> str:
        return f"{self.url}/v2/models/{self.model}"


@contextlib.contextmanager
def serving(model: str, settings: Settings, folder: Path) -> Iterator[Served]:
    """Register versions 1 and 2 of a new model, serve the first, and end Serve after it."""
    bundles = {}
    for seed in (1, 2):
        bundle = write_bundle(folder / str(seed), seed=seed, name=model, run=f"{model}-{seed}")
        bundles[Tracking(settings).register(model, bundle, run_id=None).version] = bundle
    port = free_port()
    env = settings.environment()
    done = run_module("serve", "deploy", f"{model}:1", "--port", str(port), "--json", env=env)
    assert done.exit_code == 0, done.stderr
    yield Served(model, f"http://127.0.0.1:{port}", done.json, bundles)
    done = run_module("serve", "down", "--json", env=env)
    assert done.exit_code == 0, done.stderr


def expected_logits(bundle: Bundle, pixels: npt.NDArray[np.uint8] = PIXELS) -> list[float]:
    """What the bundle itself says."""
    logits: list[float] = open_session(bundle).run(pixels[None, None])[0].tolist()
    return logits
