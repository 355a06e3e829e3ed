"""Where a model is to run on Kubernetes or other machines, and by which addresses it is found."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from cluster.errors import UserError
from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE, Settings

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
    """Of a pod that trains; served models run on CPUs."""
    memory_gib: int = 8
    """Of every pod."""
    store_claim: str | None = None
    """PersistentVolumeClaim that holds the store, where that is a folder."""
    head_ip: str | None = None
    worker_ips: tuple[str, ...] = ()
    ssh_user: str = "ubuntu"

    @property
    def training_workers(self) -> int:
        """How many processes train: one for each GPU, or one in each pod."""
        return self.workers * max(1, self.gpus_per_worker)

    @property
    def cpus_per_training_worker(self) -> int:
        """The share of each in the CPUs of its pod."""
        return self.cpus_per_worker // max(1, self.gpus_per_worker)

    def check(self) -> None:
        """Refuse what Kubernetes, Docker, ssh or Ray would not take.

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
        if self.cpus_per_worker < self.gpus_per_worker:
            raise UserError(
                f"--cpus-per-worker {self.cpus_per_worker} is less than --gpus-per-worker "
                f"{self.gpus_per_worker}: each GPU's process needs a CPU"
            )


def shared_addresses(settings: Settings, store_claim: str | None) -> dict[str, str]:
    """The variables by which pods find store and MLflow.

    Raises:
        UserError: either is on this machine only.
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
    for server in parse_qs(urlsplit(settings.remote or "").query).get("endpoint_override", ()):
        if _is_loopback(urlsplit(f"//{server}").hostname):
            raise UserError(
                f"{STORE_VARIABLE}={settings.address} is on this machine only: name the object "
                "store by an address that pods reach"
            )
    parts = urlsplit(settings.tracking_uri)
    if parts.scheme in {"", "sqlite", "file"} or _is_loopback(parts.hostname):
        raise UserError(
            f"{TRACKING_VARIABLE}={settings.tracking_uri} is on this machine only: run `mlflow "
            f"server --host 0.0.0.0` where pods reach it, and export {TRACKING_VARIABLE}=http://"
            "HOST:5000"
        )
    return settings.environment()


def _is_loopback(host: str | None) -> bool:
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified
