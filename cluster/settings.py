"""Where things are kept, read once from the environment."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster.config import Frozen
from cluster.errors import ConfigError
from cluster.remote import check_uri, complete_uri, hide_login

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
            ConfigError: an address that cannot be used or shows a password, or an object store
                without a tracking server that other hosts reach.
        """
        store, remote = locate_store(os.environ.get(STORE_VARIABLE) or "~/.local/share/raybridge")
        tracking = check_tracking_uri(os.environ.get(TRACKING_VARIABLE, ""))
        if remote is not None and urlsplit(tracking).scheme in _LOCAL_TRACKING:
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


def check_tracking_uri(uri: str) -> str:
    """Return ``uri`` if MLflow can be asked there; nothing is connected to.

    Raises:
        ConfigError: it is malformed, or holds a password, which would be shown everywhere.
    """
    shown = f"{TRACKING_VARIABLE}={hide_login(uri)}"
    try:
        parts = urlsplit(uri)
        web = parts.scheme in {"http", "https"}
        broken = parts.port == 0 or (web and (not parts.hostname or bool(re.search(r"\s", uri))))
    except ValueError:  # Which quotes what may be half a password.
        broken = True
    if broken:
        raise ConfigError(f"{shown} is no address; expected http://HOST:5000")
    if parts.password is not None or (web and parts.username):
        raise ConfigError(
            f"{shown}: every node and Ray's dashboard show this address; keep the password out of "
            "it, and export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on each node"
            f"{'' if web else ' (of an `mlflow server` before the database)'}"
        )
    return uri


def locate_store(address: str) -> tuple[Path, str | None]:
    """The folder of a store on this node, and the URI behind it if that is not all of it.

    Args:
        address: a path, ``file:///PATH``, or the URI of an object store.

    Raises:
        ConfigError: a URI of a kind that is not supported, or one that is none.
    """
    if address.startswith(("file:///", "file://~")):
        return Path(unquote(address.removeprefix("file://"))).expanduser().absolute(), None
    if "://" in address:
        uri = complete_uri(check_uri(address.rstrip("/")))
        cache = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/raybridge").expanduser().absolute()
        return cache / "stores" / hashlib.sha256(uri.encode()).hexdigest()[:16], uri
    if re.match(r"[A-Za-z0-9]+:", address):
        raise ConfigError(
            f"{STORE_VARIABLE}={address}: neither a path nor a URI; expected s3://BUCKET/PREFIX, "
            "file:///PATH or a path (./ before one with a colon)"
        )
    return Path(address).expanduser().absolute(), None
