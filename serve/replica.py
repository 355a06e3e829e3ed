"""What Ray Serve runs: a replica of a model, and the root application's replica."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.serve as ray_serve
import ray.serve._private.replica as ray_replica
from ray.serve.schema import ReplicaState  # type: ignore[attr-defined]
from ray.util import metrics as ray_metrics

from cluster import ingress
from cluster.store import Store
from serve.app import ModelApp
from serve.config import ReplicaConfig
from serve.document import ServedDocument, ServedDocuments
from serve.metrics import (
    BATCH_BOUNDARIES,
    BATCH_SIZE,
    LATENCY_BOUNDARIES_MS,
    LATENCY_MS,
    REQUESTS,
    ROLLOUT_FAILURES,
    Meter,
)
from serve.predictor import Predictor, open_model
from serve.root import ModelState, RootApp, States

logger = logging.getLogger(__name__)

APP_PREFIX = "model-"
"""Application of model NAME is ``model-NAME``."""
ROOT_APP = "raybridge-root"
_POLL_S = 1.0


class RaySink:
    """Hands values to Ray's metrics agent, which Prometheus scrapes."""

    def __init__(self) -> None:
        self._counters = {
            REQUESTS: ray_metrics.Counter(
                REQUESTS,
                "Requests answered, by status code.",
                ("model", "version", "endpoint", "code"),
            ),
            ROLLOUT_FAILURES: ray_metrics.Counter(
                ROLLOUT_FAILURES, "Generations that a replica could not open.", ("model",)
            ),
        }
        self._histograms = {
            LATENCY_MS: ray_metrics.Histogram(
                LATENCY_MS,
                "Milliseconds from the request's headers to its answer, in the replica.",
                list(LATENCY_BOUNDARIES_MS),
                ("model", "version", "endpoint"),
            ),
            BATCH_SIZE: ray_metrics.Histogram(
                BATCH_SIZE,
                "Images of one forward pass.",
                list(BATCH_BOUNDARIES),
                ("model", "version"),
            ),
        }

    def count(self, name: str, value: int, tags: Mapping[str, str]) -> None:
        """Add to a counter."""
        self._counters[name].inc(value, dict(tags))

    def observe(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Add one observation to a histogram."""
        self._histograms[name].observe(value, dict(tags))


@ray_serve.ingress()
class ModelReplica:
    """Serves the committed generation of one model.

    Its public methods beside the ASGI application are called through the deployment's handle; they
    run in a thread, so requests go on meanwhile.
    """

    def __init__(
        self,
        name: str,
        store_root: str,
        config: ReplicaConfig,
        haproxy_folder: str | None,
        loopback: bool,
    ) -> None:
        """Open the committed generation.

        Args:
            name: of the model.
            store_root: as this node sees it.
            config: of the replica.
            haproxy_folder: where this node's HAProxy wrapper belongs; None without HAProxy.
            loopback: whether nothing here may listen beyond the loopback interface.

        Raises:
            RaybridgeError: it cannot be opened, and so the replica must not take requests.
        """
        if haproxy_folder is not None:
            # Serve starts a proxy on this node because we are here: the node may be new.
            ingress.install_wrapper(Path(haproxy_folder))
        if loopback:
            _keep_on_loopback()
        self._config = config
        self._meter = Meter(name, RaySink())
        self._predictor = Predictor(
            name,
            ServedDocuments(Store(Path(store_root))),
            lambda model, served: open_model(model, served, config, self._meter),
            on_failure=self._meter.rollout_failure,
        )
        self._predictor.start()
        self._meter.start()

    def __serve_build_asgi_app__(self) -> ModelApp:
        return ModelApp(self._predictor, self._config, self._meter)

    async def check_health(self) -> None:
        """Follow the document. A generation that cannot be opened does not make us unhealthy."""
        await asyncio.to_thread(self._predictor.follow)

    def prepare(self, document: str) -> None:
        """First phase of a rollout; see :mod:`serve.rollout`."""
        self._predictor.prepare(ServedDocument.model_validate_json(document))

    def commit(self) -> dict[str, Any]:
        """Second phase: follow the document now."""
        self._predictor.follow(now=True)
        return self._predictor.state()

    def forget_prepared(self) -> None:
        """The rollout is off."""
        self._predictor.forget_prepared()

    def state(self) -> dict[str, Any]:
        """What this replica holds."""
        return self._predictor.state()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._meter.stop()


@ray_serve.ingress()
class RootReplica:
    """Knows how every model stands, by asking Serve's controller each second."""

    def __init__(self, store_root: str, loopback: bool) -> None:
        """Begin to ask; the arguments are as for :class:`ModelReplica`."""
        if loopback:
            _keep_on_loopback()
        self._documents = ServedDocuments(Store(Path(store_root)))
        self._states: States = {}
        self._first = threading.Event()
        threading.Thread(target=self._poll_forever, name="states", daemon=True).start()
        self._first.wait(10.0)

    def __serve_build_asgi_app__(self) -> RootApp:
        return RootApp(lambda: self._states)

    def _poll_forever(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._states = self._poll()
            except Exception:
                # A controller that is being replaced: models answer without it, so the last known
                # states stand.
                logger.exception("the states of the models could not be read")
            self._first.set()
            pause.wait(_POLL_S)

    def _poll(self) -> States:
        states: dict[str, ModelState] = {}
        for app_name, app in sorted(ray_serve.status().applications.items()):
            if not app_name.startswith(APP_PREFIX):
                continue
            name = app_name.removeprefix(APP_PREFIX)
            document = self._documents.read(name)
            running = sum(
                deployment.replica_states.get(ReplicaState.RUNNING, 0)
                for deployment in app.deployments.values()
            )
            may_sleep = document is not None and document.config.scaling.min_replicas == 0
            asleep = may_sleep and app.status == "RUNNING"
            versions = tuple(v.version for v in document.versions) if document else ()
            states[name] = ModelState(running > 0 or asleep, str(app.status.value), versions)
        return states


def _keep_on_loopback() -> None:
    """Bind this replica's port for calls between deployments to loopback.

    Ray opens it on every interface, after the constructor, and unpickles what arrives: without
    Ray's token that is an open door, and no option closes it. Nobody here calls through it.
    """
    module: Any = ray_replica
    bind = module.add_port_to_grpc_server

    def bind_to_loopback(server: Any, address: str) -> Any:
        return bind(server, address.replace("[::]", "127.0.0.1"))

    module.add_port_to_grpc_server = bind_to_loopback
