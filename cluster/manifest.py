"""Files that bring this project and one of its models to Kubernetes, or to machines with ssh.

    Dockerfile        the image that every node runs
    rayjob.yaml       KubeRay's RayJob: trains the model again, and registers it; if that can be
    rayservice.yaml   KubeRay's RayService: serves it, by way of serve/declarative.py
    cluster.yaml      for `ray up`, on machines of one's own

What is in them is data of a :class:`cluster.deployment.Deployment`; the rest stands in
``templates/``.
"""

import importlib.metadata
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import yaml

from cluster import ingress
from cluster.atomic import write_text_atomic
from cluster.bundle import Lineage
from cluster.cli import Output
from cluster.deployment import Deployment, shared_addresses
from cluster.errors import UserError
from cluster.retraining import Origin, read_origin
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import ModelVersion, Tracking

FILES = ("Dockerfile", "rayjob.yaml", "rayservice.yaml", "cluster.yaml")
TOKEN_SECRET = "raybridge-token"
KEYS_SECRET = "raybridge-keys"
HAPROXY_FOLDER = Path("/home/ray/haproxy")
SERVE_PORT = 8000
HEAD_CPUS = 2
# A label has 63 characters, and KubeRay appends to names.
_MAX_NAME = 30
_CONFIG_FOLDER = "/etc/raybridge"


def write_manifest(
    output: Output, reference: str, deployment: Deployment, out: Path, *, replace: bool
) -> None:
    """``cluster manifest``.

    Raises:
        UserError: an option, an address, or the model cannot be used.
    """
    deployment.check()
    settings = Settings.from_env()
    environment = shared_addresses(settings, deployment.store_claim)
    tracking = Tracking(settings)
    version = tracking.resolve(reference)
    lineage = tracking.manifest(version).lineage
    origin = read_origin(Store.open(settings.address), lineage)
    texts = render(deployment, environment, version, reference, lineage, origin, out)
    write(out, texts, replace=replace)
    for name in texts:
        output.say(f"wrote {out / name}")
    if origin.obstacle is not None:
        output.say(
            f"note: no rayjob.yaml: {version.reference} cannot be trained again from there, since "
            f"{origin.obstacle}"
        )
    elif origin.config is None:
        output.say(
            f"note: the store no longer has run {lineage.run}: rayjob.yaml trains with the recipe "
            f"{lineage.recipe} as it is"
        )
    file = shlex.quote(str(out / "Dockerfile"))
    output.say(f"next: docker build --file {file} --tag {deployment.image} .")
    output.result({"out": str(out), "files": list(texts), "model": version.reference})


def render(
    deployment: Deployment,
    environment: dict[str, str],
    version: ModelVersion,
    reference: str,
    lineage: Lineage,
    origin: Origin,
    out: Path,
) -> dict[str, str]:
    """The text of each file; without rayjob.yaml if the model cannot be trained again.

    Args:
        deployment: where, and with how much.
        environment: what :func:`cluster.deployment.shared_addresses` gives.
        version: of the model.
        reference: how the user named it; so it is served, and an alias stays an alias.
        lineage: what its bundle says that it comes from.
        origin: how the run it comes from was configured.
        out: where the files will lie, for what is said in them.

    Raises:
        UserError: an option that cannot be used, or this is no checkout.
    """
    deployment.check()
    project = _read_project()
    name = _label(version.name)
    train_name = f"{name}-train"
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
        "serve_name": name,
        "token_secret": TOKEN_SECRET,
        "keys_secret": KEYS_SECRET,
        "head_cpus": HEAD_CPUS,
        "haproxy_folder": HAPROXY_FOLDER.as_posix(),
        # Ray takes 30 % of a pod's memory for objects.
        "shared_memory_gib": max(1, -(-deployment.memory_gib * 3 // 10)),
        "config_folder": _CONFIG_FOLDER,
        "config_data": _config_data(origin),
        "entrypoint": _entrypoint(deployment, version.name, lineage, origin),
        "serve_config": _serve_config(deployment, version.name, reference),
    }
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    templates.filters |= {"quoted": json.dumps, "shell": shlex.quote}
    job = _cluster_spec(
        templates,
        {**values, "max_workers": deployment.workers},
        deployment.gpus_per_worker,
        train_name if origin.config is not None else None,
    )
    # Inference engines are those for CPUs.
    clusters = {"rayjob.yaml": job, "rayservice.yaml": _cluster_spec(templates, values, gpus=0)}
    return {
        name: templates.get_template(f"{name}.jinja").render(
            **values, raycluster=clusters.get(name, "")
        )
        for name in FILES
        if name != "rayjob.yaml" or origin.obstacle is None
    }


def write(out: Path, texts: dict[str, str], *, replace: bool) -> None:
    """Write the files, all or none. Of an earlier call none is left beside them.

    Raises:
        UserError: some are there already, and may have been edited, or the folder is none.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    there = [name for name in FILES if (out / name).exists()]
    if there and not replace:
        raise UserError(
            f"{out} has {', '.join(there)} already; name another folder with --out, or replace "
            "them with --replace"
        )
    for name in set(there) - set(texts):
        (out / name).unlink()
    for name, text in texts.items():
        write_text_atomic(out / name, text)


def _label(model: str) -> str:
    """A model's name as Kubernetes takes it for a service: it begins with a letter."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    if not slug[:1].isalpha():
        slug = f"model-{slug}"
    return slug[:_MAX_NAME].strip("-")


def _cluster_spec(
    templates: jinja2.Environment,
    values: dict[str, Any],
    gpus: int,
    config_map: str | None = None,
) -> str:
    pod: Any = templates.get_template("pod.yaml.jinja").make_module(values)
    head = pod.pod_spec("ray-head", HEAD_CPUS, 0, config_map)
    worker = pod.pod_spec("ray-worker", values["cpus_per_worker"], gpus, None)
    template = templates.get_template("raycluster.yaml.jinja")
    return template.render(**values, head=head, worker=worker).rstrip()


def _config_data(origin: Origin) -> str | None:
    """What the ConfigMap holds: the configuration and, if there is one, the network's file."""
    if origin.config is None:
        return None
    config, files = origin.config, {}
    if origin.source is not None:
        # A key of a ConfigMap may not be called as every file may.
        config = {**config, "model": {**config["model"], "path": f"{_CONFIG_FOLDER}/model.py"}}
        files = {"model.py": origin.source}
    data = {"config.json": json.dumps(config, indent=2), **files}
    # A style for every file's text that gives back its very bytes.
    text: str = yaml.safe_dump(data, default_style="|", allow_unicode=True, sort_keys=False)
    return text


def _entrypoint(deployment: Deployment, model: str, lineage: Lineage, origin: Origin) -> str:
    workers = deployment.training_workers
    command = ["python", "-m", "train", "fit", lineage.recipe]
    if origin.config is not None:
        command += ["--config", f"{_CONFIG_FOLDER}/config.json"]
        batch_size = origin.config.get("batch_size", workers)
        if batch_size % workers:
            raise UserError(
                f"run {lineage.run} has a batch size of {batch_size}, which does not divide among "
                f"{workers} workers; choose --workers and --gpus-per-worker accordingly"
            )
    command += [
        *("--data", lineage.dataset.partition("@")[0]),
        *("--workers", str(workers)),
        *("--set", f"resources.cpus_per_worker={deployment.cpus_per_training_worker}"),
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
