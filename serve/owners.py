"""Which Ray clusters serve a model: clusters that share a store share its documents.

A document says who serves by it, so that one cluster does not take away what another one follows.
"""

import contextlib
import socket

import ray

from cluster.errors import ServingError
from cluster.session import answers
from serve.document import Owner, ServedDocuments
from serve.topology import HEAD_RESOURCE, LOOPBACK_HOSTS


def own_cluster() -> Owner:
    """The cluster that this process is connected to."""
    cluster_id, _ = ray._private.worker.global_worker.current_cluster_and_job
    heads = [node for node in ray.nodes() if node["Alive"] and HEAD_RESOURCE in node["Resources"]]
    return Owner(
        cluster=cluster_id.hex(),
        address=ray.get_runtime_context().gcs_address,
        host=heads[0]["NodeManagerHostname"] if heads else "",
    )


def other_owners(
    documents: ServedDocuments, model: str, own: Owner | None = None
) -> tuple[Owner, ...]:
    """The other clusters that serve a model, as far as they answer.

    Args:
        documents: of the store.
        model: which.
        own: the cluster that this process is connected to, if it is to one.
    """
    document = None
    with contextlib.suppress(ServingError):  # One that is damaged is nobody's.
        document = documents.read(model)
    owners = document.owners if document is not None else ()
    return tuple(owner for owner in owners if not _is_own(owner, own) and looks_alive(owner))


def looks_alive(owner: Owner) -> bool:
    """Whether something answers where the head of that cluster was."""
    host, _, _ = owner.address.rpartition(":")
    if host.strip("[]") in LOOPBACK_HOSTS and owner.host != socket.gethostname():
        return False  # It cannot be asked from here.
    return answers(owner.address)


def _is_own(owner: Owner, own: Owner | None) -> bool:
    if own is None:
        return False
    # What was at our address before us has ended.
    same_place = (owner.address, owner.host) == (own.address, own.host)
    return owner.cluster == own.cluster or same_place
