"""How a model is served: replicas, batching, engine, limits, and where HTTP listens."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from cluster.config import Frozen, parse_overrides, read_config_file
from cluster.images import MAX_BYTES, MAX_PIXELS
from cluster.runtime import Engine

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


class ReplicaConfig(Frozen):
    """What one replica does with its requests. A change replaces the replicas, one by one."""

    engine: Engine = "onnxruntime"
    """What runs the graph."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of one forward pass."""
    max_batch_size: int = Field(default=32, ge=1, le=4096)
    """Images of one forward pass at most."""
    batch_wait_ms: float = Field(default=0.0, ge=0, le=1000)
    """How long an idle replica holds the first request of a batch for others to join."""
    max_body_bytes: int = Field(default=MAX_BYTES, ge=1024, le=2**30)
    """Largest request body, also after decompression."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Largest image that is decoded."""
    max_queued: int = Field(default=512, ge=1, le=100_000)
    """Requests that a replica works on or holds; more are answered 503 with Retry-After."""


class ScalingConfig(Frozen):
    """How many replicas there are."""

    min_replicas: int = Field(default=1, ge=0, le=1000)
    """0 lets an idle model stop; its next request then waits for a start."""
    max_replicas: int = Field(default=2, ge=1, le=1000)
    """Replicas reserve no CPU, so this is what bounds them."""
    target_ongoing_requests: float = Field(default=16.0, gt=0)
    """Requests in work per replica that the autoscaler aims at."""
    upscale_delay_s: float = Field(default=3.0, ge=0)
    """How long load must last before replicas are added."""
    downscale_delay_s: float = Field(default=60.0, ge=0)
    """How long load must be low before replicas go."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}"
            )
        return self


class HttpConfig(Frozen):
    """Where the whole of Ray Serve listens. Fixed from its start until ``down``."""

    host: str = Field(default=DEFAULT_HOST, min_length=1)
    """0.0.0.0 opens it to the network: there is no authentication, put a proxy in front."""
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)


class ServeConfig(Frozen):
    """Everything ``deploy`` decides."""

    replica: ReplicaConfig = ReplicaConfig()
    scaling: ScalingConfig = ScalingConfig()
    http: HttpConfig = HttpConfig()


def resolve_config(
    base: ServeConfig,
    file: Path | None,
    overrides: list[str],
    options: dict[str, dict[str, Any]],
) -> ServeConfig:
    """Lay a file, then ``--set`` overrides, then named options over ``base``.

    Args:
        base: what holds where nothing is said.
        file: TOML or JSON with the tables ``replica``, ``scaling`` and ``http``.
        overrides: ``path=value`` pairs.
        options: values by table and field; None means not given.

    Raises:
        ConfigError: names the field, the value, and what is allowed.
    """
    config = base
    if file is not None:
        config = config.with_changes(read_config_file(file), f"--config {file}")
    if overrides:
        config = config.with_changes(parse_overrides(overrides), "--set")
    given = {
        table: {name: value for name, value in fields.items() if value is not None}
        for table, fields in options.items()
    }
    return config.with_changes(given, "options")
