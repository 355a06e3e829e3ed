"""What Ray Serve runs: a replica of a model, and the root application's replica."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.serve as ray_serve
import ray.serve._private.replica as ray_replica
from ray.serve.schema import ReplicaState  # type: ignore[attr-defined]
from ray.util import metrics as ray_metrics

from cluster import ingress
from cluster.errors import RaybridgeError
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
from serve.topology import Wiring

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
        store_address: str,
        config: ReplicaConfig,
        wiring: Wiring,
    ) -> None:
        """Open the committed generation.

        Args:
            name: of the model.
            store_address: folder or URI of the store.
            config: of the replica.
            wiring: how HTTP reaches it.

        Raises:
            RaybridgeError: it cannot be opened, and so the replica must not take requests.
        """
        _wire(wiring)
        self._meter = Meter(name, RaySink())
        documents = ServedDocuments(Store.open(store_address))
        self._predictor = Predictor(
            name,
            documents,
            lambda model, served: open_model(
                model, documents.on_this_node(served), config, self._meter
            ),
            on_failure=self._meter.rollout_failure,
        )
        self._predictor.start()
        self._meter.start()
        self._replica: str = ray_serve.get_replica_context().replica_id.unique_id
        self._app = ModelApp(self._predictor, config, self._meter, self._replica)

    def __serve_build_asgi_app__(self) -> ModelApp:
        return self._app

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
        """What this replica holds and does."""
        return {
            **self._predictor.state(),
            "replica": self._replica,
            "requests_in_work": self._app.in_work,
        }

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._meter.stop()


@ray_serve.ingress()
class RootReplica:
    """Knows how every model stands, by asking Serve's controller each second."""

    def __init__(self, store_address: str, wiring: Wiring) -> None:
        """Begin to ask; the arguments are as for :class:`ModelReplica`."""
        _wire(wiring)
        self._documents = ServedDocuments(Store.open(store_address))
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
            document = self._document(name)
            running = sum(
                deployment.replica_states.get(ReplicaState.RUNNING, 0)
                for deployment in app.deployments.values()
            )
            may_sleep = document is not None and document.config.scaling.min_replicas == 0
            asleep = may_sleep and app.status == "RUNNING"
            versions = tuple(v.version for v in document.versions) if document else ()
            states[name] = ModelState(running > 0 or asleep, str(app.status.value), versions)
        return states

    def _document(self, name: str) -> ServedDocument | None:
        try:
            return self._documents.read_often(name)
        except (RaybridgeError, OSError) as error:
            logger.warning("model %s: its last known document stands: %s", name, error)
            return self._documents.last_seen(name)


def _wire(wiring: Wiring) -> None:
    """Make this node and this process ready for requests; called before Ray opens any port.

    Beside HTTP, Ray opens a port for calls between deployments, on every interface, and unpickles
    what arrives there: without Ray's token that is an open door, and no option closes it. Nobody
    here calls through it, on one node or on several, so it is bound to loopback.
    """
    if wiring.haproxy_folder is not None:
        # Serve starts a proxy on this node because we are here: the node may be new.
        ingress.install_wrapper(Path(wiring.haproxy_folder))
    module: Any = ray_replica
    bind = module.add_port_to_grpc_server

    def bind_to_loopback(server: Any, address: str) -> Any:
        return bind(server, address.replace("[::]", "127.0.0.1"))

    module.add_port_to_grpc_server = bind_to_loopback
    if wiring.entrance is None:
        return
    # HAProxy asks for replicas of its own node on loopback, and for others at their node's address.
    at_entrance = ray.get_runtime_context().get_node_id() == wiring.entrance
    host = "127.0.0.1" if at_entrance else ray.util.get_node_ip_address()
    start = module.start_asgi_http_server

    def start_there(app: Any, options: Any, **more: Any) -> Any:
        return start(app, options.model_copy(update={"host": host}), **more)

    module.start_asgi_http_server = start_there
