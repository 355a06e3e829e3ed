"""What a run left in the store from which another machine can train it once more."""

import json
from dataclasses import dataclass
from typing import Any

from cluster.bundle import Lineage
from cluster.errors import DataError
from cluster.store import Store, check_name

IMPORT_RECIPE = "import"
"""Of models that were trained elsewhere, as :mod:`train.config` calls it."""


@dataclass(frozen=True)
class Origin:
    """How a run was configured."""

    config: dict[str, Any] | None = None
    """None if the store no longer has the run: its recipe is all that is known."""
    source: str | None = None
    """Text of the user's file that describes the network, if there is one."""
    obstacle: str | None = None
    """Why nothing can be trained from this elsewhere, as the end of a sentence."""


def read_origin(store: Store, lineage: Lineage) -> Origin:
    """Find out how the run of a model can be repeated.

    Raises:
        DataError: the configuration is damaged.
    """
    if lineage.recipe == IMPORT_RECIPE:
        return Origin(obstacle="it was imported, and trained elsewhere")
    folder = store.folder(f"runs/{check_name('run', lineage.run)}")
    content = folder.read("config.json")
    if content is None:
        return Origin()
    try:
        config = dict(json.loads(content))
        model = dict(config.get("model") or {})
    except (ValueError, TypeError) as error:
        raise DataError(f"config.json of run {lineage.run} cannot be read: {error}") from None
    # A published name, or else a file of the machine that the run began on.
    if str(config.get("pretrained") or "").startswith("/"):
        return Origin(obstacle=f"its run began with {config['pretrained']} of one machine")
    if "path" not in model:
        return Origin(config)
    text = folder.read(model["path"])
    if text is None:
        return Origin(obstacle=f"the store no longer has {model['path']} of its run")
    try:
        return Origin(config, text.decode("utf-8"))
    except UnicodeDecodeError:
        return Origin(obstacle=f"{model['path']} of its run is no UTF-8 text")
