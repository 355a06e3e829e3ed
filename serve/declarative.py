"""Builders for who declares what is served instead of deploying it, as KubeRay's RayService does.

    import_path: serve.declarative:model     args: reference, config ...
    import_path: serve.declarative:root

Ray Serve calls a builder whenever the declaration changes. What it decides is the document in the
store, as a deployment does; replicas that run already follow that by themselves, so that another
version costs no restart. `cluster manifest` writes such a declaration.
"""

from pathlib import Path

import ray.serve as ray_serve
from pydantic import Field

from cluster.bundle import bundle_folder
from cluster.config import Frozen
from cluster.runtime import open_session
from cluster.settings import Settings
from cluster.store import Store
from serve.applications import Placement, model_application, root_application
from serve.commands import resolve
from serve.config import ServeConfig
from serve.document import ServedDocuments, ServedVersion
from serve.owners import other_owners, own_cluster
from serve.rollout import next_document
from serve.topology import Wiring


class RootArgs(Frozen):
    """Arguments of :func:`root`."""

    haproxy: bool = True
    """Whether the declaration switches HAProxy on; its wrapper is part of the image."""


class ModelArgs(RootArgs):
    """Arguments of :func:`model`."""

    reference: str
    """``MODEL``, ``MODEL@ALIAS`` or ``MODEL:VERSION``."""
    config: ServeConfig = ServeConfig()
    cpus_per_replica: float = Field(default=0, ge=0)
    """What a replica reserves; where pods are added for replicas, it must not be nothing."""


def root(args: RootArgs) -> ray_serve.Application:
    """The application at ``/``."""
    return root_application(Settings.from_env().address, _wiring(), _placement(args))


def model(args: ModelArgs) -> ray_serve.Application:
    """The application of a model, which must be called ``model-NAME``.

    A version that is served already stays as it is, with its share of the traffic.

    Raises:
        RaybridgeError: it cannot be served. What was served before still is.
    """
    settings = Settings.from_env()
    version, bundle = resolve(settings, args.reference)
    documents = ServedDocuments(Store.open(settings.address))
    # Here rather than on the replicas: a bundle that must not be served changes nothing.
    open_session(bundle, engine=args.config.replica.engine, num_threads=args.config.replica.threads)
    own = own_cluster()
    with documents.changing(version.name):
        previous = documents.read(version.name)
        owners = (own, *other_owners(documents, version.name, own))
        known = {(one.version, one.digest) for one in (previous.versions if previous else ())}
        if previous is None or (version.version, bundle.digest) not in known:
            path = Path(bundle_folder(documents.store, bundle.digest).name)
            served = ServedVersion(version=version.version, digest=bundle.digest, path=path)
            documents.write(next_document(version.name, served, args.config, previous, owners))
        elif previous.config != args.config or own not in previous.owners:
            later = previous.generation + 1
            changes = {"generation": later, "config": args.config, "owners": owners}
            documents.write(previous.model_copy(update=changes))
    return model_application(
        version.name,
        settings.address,
        args.config,
        _wiring(),
        _placement(args, args.cpus_per_replica),
    )


def _wiring() -> Wiring:
    """Nothing is left to make ready: the declaration starts a proxy on every node."""
    return Wiring(haproxy_folder=None, entrance=None)


def _placement(args: RootArgs, cpus: float = 0) -> Placement:
    return Placement(haproxy=args.haproxy, spreads=True, cpus=cpus)
