"""Where things are kept, read once from the environment."""

import hashlib
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster.config import Frozen
from cluster.errors import ConfigError
from cluster.remote import check_uri, complete_uri

STORE_VARIABLE = "RAYBRIDGE_STORE"
CACHE_VARIABLE = "RAYBRIDGE_CACHE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_LOCAL_TRACKING = ("", "sqlite", "file")


class Settings(Frozen):
    """The two addresses that every command needs.

    They are absolute on purpose: under ``ray job submit`` the working directory is a copy that is
    thrown away.
    """

    store: Path
    """Root folder of data sets, runs and serving documents; with ``remote``, this node's copies."""
    tracking_uri: str
    """MLflow's tracking and registry address; SQLite under the store by default."""
    remote: str | None = None
    """URI of the object store that the store is in, if it is in one."""

    @classmethod
    def from_env(cls) -> "Settings":
        """Read ``RAYBRIDGE_STORE``, ``RAYBRIDGE_CACHE`` and ``MLFLOW_TRACKING_URI``.

        Raises:
            ConfigError: the store is a URI of a kind that is not supported, or one without a
                tracking server that other hosts reach.
        """
        store, remote = locate_store(os.environ.get(STORE_VARIABLE) or "~/.local/share/raybridge")
        tracking = os.environ.get(TRACKING_VARIABLE)
        if remote is not None and urlsplit(tracking or "").scheme in _LOCAL_TRACKING:
            raise ConfigError(
                f"{STORE_VARIABLE}={remote} needs a tracking server, since MLflow's "
                f"{tracking or 'SQLite file'} is on one host only; run `mlflow server --host "
                f"HOST --port 5000` and export {TRACKING_VARIABLE}=http://HOST:5000"
            )
        return cls(
            store=store, tracking_uri=tracking or f"sqlite:///{store}/mlflow.db", remote=remote
        )

    @property
    def address(self) -> str:
        """Folder or URI of the store, which means the same on every node."""
        return self.remote or str(self.store)

    def environment(self) -> dict[str, str]:
        """The same settings as environment variables, for a worker, a replica or a job."""
        return {STORE_VARIABLE: self.address, TRACKING_VARIABLE: self.tracking_uri}


def locate_store(address: str) -> tuple[Path, str | None]:
    """The folder of a store on this node, and the URI behind it if that is not all of it.

    Args:
        address: a path, ``file://``, or the URI of an object store.

    Raises:
        ConfigError: a URI of a kind that is not supported.
    """
    if "://" not in address:
        return Path(address).expanduser().absolute(), None
    if address.startswith("file://"):
        return Path(unquote(address.removeprefix("file://"))).expanduser().absolute(), None
    uri = complete_uri(check_uri(address.rstrip("/")))
    cache = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/raybridge").expanduser().absolute()
    return cache / "stores" / hashlib.sha256(uri.encode()).hexdigest()[:16], uri
