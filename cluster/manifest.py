"""Files that bring this project and one of its models to Kubernetes, or to machines with ssh.

    Dockerfile        the image that every node runs
    rayjob.yaml       KubeRay's RayJob: trains the model again, and registers it
    rayservice.yaml   KubeRay's RayService: serves it, by way of serve/declarative.py
    cluster.yaml      for `ray up`, on machines of one's own

What is in them is data of a :class:`Deployment`; the rest stands in ``templates/``.
"""

import importlib.metadata
import json
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
import yaml

from cluster import ingress
from cluster.bundle import Lineage
from cluster.errors import UserError
from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE, Settings
from cluster.store import Store, check_name, write_text_atomic
from cluster.tracking import ModelVersion

FILES = ("Dockerfile", "rayjob.yaml", "rayservice.yaml", "cluster.yaml")
TOKEN_SECRET = "raybridge-token"
KEYS_SECRET = "raybridge-keys"
HAPROXY_FOLDER = Path("/home/ray/haproxy")
SERVE_PORT = 8000
HEAD_CPUS = 2
# A label has 63 characters, and KubeRay appends to names.
_MAX_NAME = 30
_KUBERNETES_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Deployment:
    """Where a model is to run, and with how much."""

    image: str = "raybridge:latest"
    namespace: str = "default"
    workers: int = 2
    """Pods that work; when serving, at least."""
    max_workers: int = 4
    """When serving, at most."""
    cpus_per_worker: int = 2
    gpus_per_worker: int = 0
    memory_gib: int = 8
    """Of every pod."""
    store_claim: str | None = None
    """PersistentVolumeClaim that holds the store, where that is a folder."""
    head_ip: str | None = None
    worker_ips: tuple[str, ...] = ()
    ssh_user: str = "ubuntu"

    def check(self) -> None:
        """Refuse what Kubernetes, Docker or ssh would not take.

        Raises:
            UserError: names the option and what is allowed.
        """
        if not _IMAGE.fullmatch(self.image):
            raise UserError(f"--image {self.image}: expected a name such as REGISTRY/raybridge:1")
        for option, name in (("--namespace", self.namespace), ("--store-claim", self.store_claim)):
            if name is not None and not _KUBERNETES_NAME.fullmatch(name):
                raise UserError(f"{option} {name}: use up to 63 of a-z, 0-9 and '-'")
        for host in (*self.worker_ips, *filter(None, [self.head_ip])):
            if not _HOST.fullmatch(host):
                raise UserError(f"address {host!r}: expected the name or address of a machine")
        if not _HOST.fullmatch(self.ssh_user.replace("_", "-")):
            raise UserError(f"--ssh-user {self.ssh_user!r}: expected the name of a user")
        if self.max_workers < self.workers:
            raise UserError(
                f"--max-workers {self.max_workers} is less than --workers {self.workers}"
            )


def shared_addresses(settings: Settings, store_claim: str | None) -> dict[str, str]:
    """The variables by which pods find store and MLflow.

    Raises:
        UserError: either is on this machine only, or shows a password.
    """
    if settings.remote is not None and store_claim is not None:
        raise UserError(
            f"--store-claim {store_claim}: {STORE_VARIABLE}={settings.address} needs no volume"
        )
    if settings.remote is None and store_claim is None:
        raise UserError(
            f"{STORE_VARIABLE}={settings.address} is a folder, which pods do not see: export "
            f"{STORE_VARIABLE}=s3://BUCKET/PREFIX, or name the PersistentVolumeClaim that holds "
            "it with --store-claim"
        )
    parts = urlsplit(settings.tracking_uri)
    if parts.scheme in {"", "sqlite", "file"} or parts.hostname in {"127.0.0.1", "localhost"}:
        raise UserError(
            f"{TRACKING_VARIABLE}={settings.tracking_uri} is on this machine only: run `mlflow "
            f"server --host 0.0.0.0` where pods reach it, and export {TRACKING_VARIABLE}=http://"
            "HOST:5000"
        )
    if parts.password is not None:
        raise UserError(
            f"{TRACKING_VARIABLE} holds a password, which these files would show: take it out, "
            f"and put MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD into the Secret "
            f"{KEYS_SECRET}"
        )
    return settings.environment()


def training_config(store: Store, run: str) -> dict[str, Any] | None:
    """The configuration of a run, or None if the store no longer has it."""
    content = store.folder(f"runs/{check_name('run', run)}").read("config.json")
    return None if content is None else dict(json.loads(content))


def render(
    deployment: Deployment,
    environment: dict[str, str],
    version: ModelVersion,
    reference: str,
    lineage: Lineage,
    config: dict[str, Any] | None,
    out: Path,
) -> dict[str, str]:
    """The text of each file.

    Args:
        deployment: where, and with how much.
        environment: what :func:`shared_addresses` gives.
        version: of the model.
        reference: how the user named it; so it is served, and an alias stays an alias.
        lineage: what its bundle says that it comes from.
        config: of the run it comes from; without it the recipe's own is taken.
        out: where the files will lie, for what is said in them.

    Raises:
        UserError: an option that cannot be used, or this is no checkout.
    """
    deployment.check()
    project = _read_project()
    slug = re.sub(r"[^a-z0-9]+", "-", version.name.lower()).strip("-")[:_MAX_NAME].strip("-")
    train_name = f"{slug or 'model'}-train"
    addresses = deployment.worker_ips
    if not deployment.head_ip and not addresses:
        addresses = tuple(f"WORKER_ADDRESS_{i + 1}" for i in range(deployment.workers))
    values: dict[str, Any] = {
        **vars(deployment),
        **project,
        "worker_ips": list(addresses),
        "out": out.as_posix(),
        "environment": environment,
        "model": version.name,
        "version": version.version,
        "run": lineage.run,
        "reference": reference,
        "train_name": train_name,
        "serve_name": slug or "model",
        "token_secret": TOKEN_SECRET,
        "keys_secret": KEYS_SECRET,
        "head_cpus": HEAD_CPUS,
        "haproxy_folder": HAPROXY_FOLDER.as_posix(),
        # Ray takes 30 % of a pod's memory for objects.
        "shared_memory_gib": max(1, -(-deployment.memory_gib * 3 // 10)),
        "config": None if config is None else json.dumps(config, indent=2),
        "entrypoint": _entrypoint(deployment, version.name, lineage, config),
        "serve_config": _serve_config(deployment, version.name, reference),
    }
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    templates.filters |= {"quoted": json.dumps, "shell": shlex.quote}
    job = _cluster_spec(templates, values, train_name if config is not None else None, grows=False)
    service = _cluster_spec(templates, values, None, grows=True)
    clusters = {"rayjob.yaml": job, "rayservice.yaml": service}
    return {
        name: templates.get_template(f"{name}.jinja").render(
            **values, raycluster=clusters.get(name, "")
        )
        for name in FILES
    }


def write(out: Path, texts: dict[str, str], *, replace: bool) -> None:
    """Write the files, all or none.

    Raises:
        UserError: some are there already, and may have been edited.
    """
    there = [name for name in texts if (out / name).exists()]
    if there and not replace:
        raise UserError(
            f"{out} has {', '.join(there)} already; name another folder with --out, or replace "
            "them with --replace"
        )
    for name, text in texts.items():
        write_text_atomic(out / name, text)


def _cluster_spec(
    templates: jinja2.Environment, values: dict[str, Any], config_map: str | None, *, grows: bool
) -> str:
    if not grows:
        values = {**values, "max_workers": values["workers"]}
    pod: Any = templates.get_template("pod.yaml.jinja").make_module(values)

    def make_pod(role: str, cpus: int, gpus: int) -> str:
        return str(pod.pod_spec(role, cpus, gpus, config_map if role == "ray-head" else None))

    return templates.get_template("raycluster.yaml.jinja").render(**values, pod=make_pod).rstrip()


def _entrypoint(
    deployment: Deployment, model: str, lineage: Lineage, config: dict[str, Any] | None
) -> str:
    command = ["python", "-m", "train", "fit", lineage.recipe]
    if config is not None:
        command += ["--config", "/etc/raybridge/config.json"]
    command += [
        *("--data", lineage.dataset.partition("@")[0]),
        *("--workers", str(deployment.workers)),
        *("--set", f"resources.cpus_per_worker={deployment.cpus_per_worker}"),
        *("--set", f"resources.device={'cuda' if deployment.gpus_per_worker else 'cpu'}"),
        *("--register", model),
    ]
    return shlex.join(command)


def _serve_config(deployment: Deployment, model: str, reference: str) -> str:
    """What KubeRay hands to Ray Serve: the controller's switches and two applications."""
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},
        "controller_options": {
            "runtime_env": {
                "env_vars": ingress.controller_switches(
                    HAPROXY_FOLDER, num_cpus=deployment.cpus_per_worker
                )
            }
        },
        "applications": [
            {
                "name": "raybridge-root",
                "route_prefix": "/",
                "import_path": "serve.declarative:root",
                "args": {"haproxy": True},
            },
            {
                "name": f"model-{model}",
                "route_prefix": f"/v2/models/{model}",
                "import_path": "serve.declarative:model",
                "args": {
                    "reference": reference,
                    "haproxy": True,
                    # Reserved, so that Kubernetes adds pods as Serve adds replicas.
                    "cpus_per_replica": 1,
                    "config": {
                        "http": {"host": "0.0.0.0", "port": SERVE_PORT},
                        "scaling": {
                            "min_replicas": deployment.workers,
                            "max_replicas": deployment.max_workers * deployment.cpus_per_worker,
                        },
                    },
                },
            },
        ],
    }
    return str(yaml.safe_dump(config, sort_keys=False, width=1000))


def _read_project() -> dict[str, Any]:
    """What the image is made of.

    Raises:
        UserError: this package was installed from a wheel, which has not all of it.
    """
    root = Path(__file__).resolve().parents[1]
    files = ("pyproject.toml", "requirements.lock", "README.md", "LICENSE")
    missing = [name for name in files if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"{root} is no checkout of Raybridge ({missing[0]} is missing): the image is built "
            "from one, so call this command there"
        )
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    pins = dict(
        line.split("==")
        for line in (root / "requirements.lock").read_text("utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    return {
        "files": files,
        "packages": project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        "torch": [f"{name}=={pins[name]}" for name in ("torch", "torchvision")],
        # Ray wants the same Python on every node, that of who submits jobs included.
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "ray": importlib.metadata.version("ray"),
    }
