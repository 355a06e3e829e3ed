"""What Ray Serve runs: one application for each model, and a light one at ``/``.

They are the same whoever asks Serve for them: ``python -m serve deploy``, or a declaration such as
KubeRay's (:mod:`serve.declarative`).
"""

from dataclasses import dataclass
from typing import Any

import ray.serve as ray_serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from cluster import ingress
from serve import shortcut
from serve.config import ServeConfig
from serve.replica import ModelReplica, RootReplica
from serve.topology import HEAD_RESOURCE, Wiring, import_path

MODEL_DEPLOYMENT = "model"
_HEALTH_PERIOD_S = 2.0
_METRICS_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Placement:
    """Where replicas run, and behind what."""

    haproxy: bool
    """HAProxy hands requests straight to them."""
    spreads: bool
    """They may run on other nodes than the head's."""
    cpus: float = 0.0
    """What one of them reserves."""


def model_application(
    name: str, store_address: str, config: ServeConfig, wiring: Wiring, placement: Placement
) -> ray_serve.Application:
    """The application of a model, whose replicas follow the document in the store.

    Args:
        name: of the model.
        store_address: folder or URI of the store.
        config: of the replicas.
        wiring: how their nodes are made ready for HTTP.
        placement: where they run.
    """
    replica = config.replica
    deployment = ray_serve.deployment(
        name=MODEL_DEPLOYMENT,
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.scaling.min_replicas,
            initial_replicas=max(1, config.scaling.min_replicas),
            max_replicas=config.scaling.max_replicas,
            target_ongoing_requests=config.scaling.target_ongoing_requests,
            upscale_delay_s=config.scaling.upscale_delay_s,
            downscale_delay_s=config.scaling.downscale_delay_s,
            # The autoscaler would hear of load every 10 s, and look at the mean of 30 s. Ray calls
            # the first option deprecated, but nothing reads the variables that are to replace it.
            metrics_interval_s=_METRICS_INTERVAL_S,
            look_back_period_s=3 * _METRICS_INTERVAL_S,
        ),
        # Above our own bound, so that refusals are ours: JSON with Retry-After.
        max_ongoing_requests=2 * replica.max_queued + 100,
        ray_actor_options=_actor_options(
            placement,
            {
                "OMP_NUM_THREADS": str(replica.threads),
                **(shortcut.SWITCH if placement.haproxy else {}),
            },
            placement.cpus,
        ),
        health_check_period_s=_HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=20,
        max_surge_percent=100,
        max_constructor_retry_count=3,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    return deployment(ModelReplica).bind(name, store_address, replica, wiring)


def root_application(
    store_address: str, wiring: Wiring, placement: Placement
) -> ray_serve.Application:
    """The application at ``/``; the arguments are as for :func:`model_application`."""
    deployment = ray_serve.deployment(
        name="root",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options=_actor_options(placement, {}, 0.0),
        max_surge_percent=100,
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    return deployment(RootReplica).bind(store_address, wiring)


def _actor_options(placement: Placement, env_vars: dict[str, str], cpus: float) -> dict[str, Any]:
    switches = ingress.replica_switches() if placement.haproxy else {}
    options: dict[str, Any] = {
        # By default nothing: on two CPUs a tenth of one would keep a two-worker trainer waiting.
        "num_cpus": cpus,
        # But a byte, for form's sake: what takes nothing at all is begun by a node drawn by lot,
        # and each node counts on its own when it spreads replicas, so that they end up together.
        "memory": 1,
        "runtime_env": {"env_vars": {**switches, **import_path(), **env_vars}},
    }
    if not placement.spreads:
        options["resources"] = {HEAD_RESOURCE: 0.0001}
    return options
