"""What can go wrong, and the exit code it ends a command with.

    RaybridgeError              1   something of ours failed while it worked
    |-- TrainingError           1   a run died and did not recover
    |-- ServingError            1   an application did not come up, or a server failed
    |-- StoreError              1   a remote store does not answer
    `-- UserError               2   the caller can put it right; the message says how
        |-- ConfigError             a field, a recipe, an override
        |-- DataError               a data set or an image
        |-- BundleError             a bundle that must not be opened
        |-- CheckpointError         a checkpoint that does not fit
        |-- DivergedError           a training whose loss is not finite
        |-- NotFoundError           a run, a model, a version, a data set that does not exist
        `-- ResourceError           more CPUs, GPUs or ports than are free

A message is one line: what is wrong, where, and what is allowed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class RaybridgeError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is what the command ends with."""

    exit_code = 1
    details: Mapping[str, Any] = MappingProxyType({})
    """Further fields of the line that ``--json`` prints: what is too long for a message."""


class TrainingError(RaybridgeError):
    """A training run failed and could not recover."""


class ServingError(RaybridgeError):
    """An application did not come up, or a server answered with a failure."""


class StoreError(RaybridgeError):
    """A remote store does not answer, or answers with nonsense."""


class UserError(RaybridgeError):
    """A mistake that the caller can correct."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration field, recipe or override is wrong."""


class DataError(UserError):
    """A data set or an image cannot be used."""


class BundleError(UserError):
    """A bundle is damaged, unsafe or of another schema version."""


class CheckpointError(UserError):
    """A checkpoint is damaged or belongs to another model."""


class DivergedError(UserError):
    """A training's loss is not finite; another rate or precision may keep it so."""


class NotFoundError(UserError):
    """Something was named that does not exist."""


class ResourceError(UserError):
    """More was asked for than the cluster or the machine has free."""
