"""Ray Serve, as far as we use it: start, applications, replicas, state, end."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.serve as ray_serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.api import RunTarget
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from cluster import ingress
from cluster.errors import RaybridgeError, ServingError, UserError
from serve.applications import (
    MODEL_DEPLOYMENT,
    Placement,
    model_application,
    root_application,
)
from serve.config import HttpConfig, ServeConfig
from serve.replica import APP_PREFIX, ROOT_APP
from serve.states import ApplicationState, read_states
from serve.topology import (
    ANY_HOSTS,
    LOOPBACK_HOSTS,
    Head,
    Wiring,
    alive_nodes,
    find_head,
    haproxy_folder,
    prepare_head,
)

_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
_NAMESPACE = "serve"
_ROOT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Ingress:
    """How HTTP reaches the replicas of this cluster."""

    host: str
    port: int
    haproxy: bool
    """HAProxy hands requests straight to replicas; else Serve's Python proxy is in between."""
    every_node: bool
    """Each node with a replica has a proxy; else only the head has one."""
    head: Head
    notes: tuple[str, ...] = ()
    """What is slower or narrower than it could be, and why; one line each."""

    @property
    def url(self) -> str:
        """Where this machine reaches it."""
        if self.host not in ANY_HOSTS:
            return self._url(self.host)
        return self._url("127.0.0.1" if self.head.here else self.head.address)

    @property
    def urls(self) -> list[str]:
        """Every address that should work."""
        if self.host not in ANY_HOSTS:
            return [self.url]
        # The head's proxy is always there, the others' while they have replicas.
        outward = [self.head.address, *sorted(set(alive_nodes().values()) - {self.head.address})]
        return list(dict.fromkeys([self.url, *map(self._url, outward)]))

    @property
    def spreads(self) -> bool:
        """Whether replicas on other nodes than the head's can be reached."""
        return not self.haproxy or not self.every_node or self.host in ANY_HOSTS

    @property
    def placement(self) -> Placement:
        """Where replicas run behind it."""
        return Placement(haproxy=self.haproxy, spreads=self.spreads)

    def wiring(self) -> Wiring:
        """What replicas must know of it."""
        return Wiring(
            haproxy_folder=haproxy_folder(self.head) if self.haproxy else None,
            entrance=self.head.node_id if self.haproxy and not self.every_node else None,
        )

    def _url(self, host: str) -> str:
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class ServeCluster:
    """Ray Serve on the connected Ray cluster."""

    def __init__(self) -> None:
        # Serve tells every step at INFO on standard error; ours is one line for each result.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)

    def ingress(self) -> Ingress | None:
        """The running ingress, or None if Serve does not run."""
        try:
            controller = ray.get_actor(_CONTROLLER, namespace=_NAMESPACE)
            options, proxies, location = self._ask(controller)
        except ValueError:
            return None
        except RayError as error:
            raise ServingError(f"Serve's controller does not answer: {_reason(error)}") from None
        haproxy = any("HAProxyManager" in repr(proxy) for proxy in proxies.values())
        notes = () if haproxy else ("Serve's Python proxy is the ingress, not HAProxy",)
        return Ingress(
            host=options.host or "0.0.0.0",
            port=options.port,
            haproxy=haproxy,
            every_node=location != ProxyLocation.HeadOnly,
            head=find_head(),
            notes=notes,
        )

    @staticmethod
    def _ask(controller: Any) -> tuple[HTTPOptions, Mapping[str, Any], ProxyLocation]:
        questions = (
            controller.get_http_config,
            controller.get_proxies,
            controller.get_proxy_location,
        )
        answers: Any = ray.get([question.remote() for question in questions], timeout=30)
        return answers[0], answers[1], answers[2]

    def start(self, http: HttpConfig) -> Ingress:
        """Start Serve with our switches, or take the one that runs.

        Raises:
            ResourceError: the port is taken.
            UserError: Serve runs already and listens elsewhere, or would listen out of sight.
        """
        head = find_head()
        if not head.here and http.host in LOOPBACK_HOSTS:
            raise UserError(
                f"HTTP would listen on the loopback interface of the head node, {head.address}, "
                "and this is another machine: run this there or by `python -m cluster submit`, or "
                "give --host 0.0.0.0"
            )
        running = self.ingress()
        if running is not None:
            if (running.host, running.port) != (http.host, http.port):
                raise UserError(
                    f"Ray Serve runs already, on {running.host}:{running.port}: leave out --host "
                    "and --port, or end it first with `python -m serve down`"
                )
            if not running.haproxy:
                note = (
                    "Ray Serve was started before, without HAProxy: its Python proxy stands in "
                    "front of the replicas and several times fewer requests get through; once "
                    "Serve has ended, which `python -m serve down` does if nothing else runs on "
                    "it, the next deploy starts HAProxy"
                )
                return dataclasses.replace(running, notes=(note,))
            return running
        problem = ingress.haproxy_problem()
        if problem is None and http.host not in ANY_HOSTS | LOOPBACK_HOSTS:
            # Ray looks for its HAProxy on loopback, and calls it dead where it does not answer.
            raise UserError(
                f"--host {http.host}: HAProxy listens on loopback (127.0.0.1) or on every "
                "interface (0.0.0.0)"
            )
        folder = prepare_head(head, http.host, http.port, haproxy=problem is None)
        every_node = http.host in ANY_HOSTS
        # On one address, HAProxy of another node could not listen.
        location = ProxyLocation.EveryNode if every_node else ProxyLocation.HeadOnly
        options = HTTPOptions(host=http.host, port=http.port)
        if folder is None:
            ray_serve.start(proxy_location=location, http_options=options)
            note = f"{problem}: Serve's Python proxy serves, with several times fewer requests/s"
            return Ingress(http.host, http.port, False, every_node, head, (note,))
        switches = ingress.controller_switches(Path(folder), num_cpus=head.cpus)
        ray_serve.start(
            proxy_location=location,
            http_options=options,
            controller_options={"runtime_env": {"env_vars": switches}},
        )
        return Ingress(http.host, http.port, haproxy=True, every_node=every_node, head=head)

    def placement_note(self, http_ingress: Ingress) -> str | None:
        """What to know about where replicas run and listen, on a cluster of several nodes."""
        nodes = len(alive_nodes())
        if nodes < 2 or not http_ingress.haproxy:
            return None
        if not http_ingress.spreads:
            return (
                f"replicas stay on the head node, one of {nodes}: HAProxy runs on every node, and "
                "HTTP listens on loopback; end Serve with `python -m serve down`, and deploy again"
            )
        if http_ingress.every_node:
            return None
        return (
            f"replicas run on {nodes} nodes, and but for the head's they listen on their node's "
            "address, for HAProxy on the head: keep that network to the cluster"
        )

    def run_model(
        self, name: str, store_address: str, config: ServeConfig, http_ingress: Ingress
    ) -> None:
        """Run or replace the application of a model; returns when its replicas answer.

        Raises:
            ServingError: it does not come up.
        """
        application = model_application(
            name, store_address, config, http_ingress.wiring(), http_ingress.placement
        )
        _run(application, f"{APP_PREFIX}{name}", f"/v2/models/{name}")

    def begin_root(self, store_address: str, http_ingress: Ingress) -> None:
        """Set the root application going unless it runs."""
        app = ray_serve.status().applications.get(ROOT_APP)
        if app is not None and app.status == ApplicationStatus.RUNNING:
            return
        application = root_application(store_address, http_ingress.wiring(), http_ingress.placement)
        target = RunTarget(application, ROOT_APP, "/")
        with contextlib.suppress(RuntimeError, ValueError, RayServeException, RayError):
            ray_serve.run_many([target], wait_for_applications_running=False)

    def root_problem(self) -> str | None:
        """Wait for the root application; returns why it does not come up, if it does not."""
        deadline = time.monotonic() + _ROOT_TIMEOUT_S
        status, message = "missing", "another application may hold the route /"
        while time.monotonic() < deadline:
            app = ray_serve.status().applications.get(ROOT_APP)
            if app is None or app.status == ApplicationStatus.DEPLOY_FAILED:
                break
            if app.status == ApplicationStatus.RUNNING:
                return None
            status, message = app.status.value, app.message
            time.sleep(0.1)
        return f"/v2/health and /v2/models are not served ({status}): {' '.join(message.split())}"

    def states(self) -> dict[str, ApplicationState]:
        """Applications of ours by model."""
        if self.ingress() is None:
            return {}
        client = _get_global_client()
        details: Mapping[str, Any] = client.get_serve_details() if client else {"applications": {}}
        return read_states(details["applications"])

    def metrics_urls(self) -> list[str]:
        """Where Prometheus scrapes the metrics of each node."""
        return [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in ray.nodes()
            if node["Alive"]
        ]

    def others(self) -> list[str]:
        """Applications on this Serve that are not ours."""
        names = ray_serve.status().applications
        return [name for name in names if name != ROOT_APP and not name.startswith(APP_PREFIX)]

    def fleet(self, model: str) -> "RayFleet":
        """The replicas of a model."""
        return RayFleet(model)

    def delete(self, models: Sequence[str], *, and_root: bool) -> None:
        """End applications; requests in work are answered."""
        names = [f"{APP_PREFIX}{model}" for model in models] + [ROOT_APP] * and_root
        client = _get_global_client()
        if client is not None:
            client.delete_apps(names, blocking=True)

    def shutdown(self) -> None:
        """End Serve with everything on it."""
        ray_serve.shutdown()


class RayFleet:
    """The running replicas of one model; see :class:`serve.rollout.Fleet`."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._handle = ray_serve.get_deployment_handle(MODEL_DEPLOYMENT, f"{APP_PREFIX}{model}")

    def call_all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Call a method on every running replica."""
        state = ServeCluster().states().get(self._model)
        if state is None or state.running == 0:
            return []
        try:
            return list(self._handle.broadcast(method, *args).results(timeout_s=timeout_s))
        except TimeoutError:
            raise ServingError(
                f"replicas of {self._model!r} did not finish {method} within {timeout_s:.0f} s"
            ) from None
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, RaybridgeError):
                raise cause from None
            raise ServingError(f"{method} failed on a replica: {_reason(error)}") from None
        except (RayError, RayServeException) as error:
            raise ServingError(f"{method} failed on a replica: {_reason(error)}") from None


def _run(target: Any, app_name: str, route_prefix: str) -> None:
    try:
        ray_serve.run(target, name=app_name, route_prefix=route_prefix)
    except (RuntimeError, ValueError, RayServeException, RayError) as error:
        raise ServingError(f"{route_prefix} does not come up: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """The last line of an error that says something: Ray puts whole traces into messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__
