"""Where things are kept, read once from the environment."""

import os
from pathlib import Path

from cluster.config import Frozen
from cluster.errors import ConfigError

STORE_VARIABLE = "RAYBRIDGE_STORE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


class Settings(Frozen):
    """The two addresses that every command needs.

    They are absolute on purpose: under ``ray job submit`` the working directory is a copy that is
    thrown away.
    """

    store: Path
    """Root folder of data sets, runs and serving documents."""
    tracking_uri: str
    """MLflow's tracking and registry address; SQLite under the store by default."""

    @classmethod
    def from_env(cls) -> "Settings":
        """Read ``RAYBRIDGE_STORE`` and ``MLFLOW_TRACKING_URI``.

        Raises:
            ConfigError: the store is a URI of a kind that is not supported.
        """
        raw = os.environ.get(STORE_VARIABLE) or "~/.local/share/raybridge"
        if "://" in raw and not raw.startswith("file://"):
            raise ConfigError(
                f"{STORE_VARIABLE}={raw}: only a folder that every node sees is supported; "
                "give an absolute path"
            )
        store = Path(raw.removeprefix("file://")).expanduser().absolute()
        tracking = os.environ.get(TRACKING_VARIABLE) or f"sqlite:///{store}/mlflow.db"
        return cls(store=store, tracking_uri=tracking)

    def environment(self) -> dict[str, str]:
        """The same settings as environment variables, for a worker, a replica or a job."""
        return {STORE_VARIABLE: str(self.store), TRACKING_VARIABLE: self.tracking_uri}
