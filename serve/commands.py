"""What ``deploy`` and ``down`` do, apart from how they print it."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.bundle import Bundle, bundle_folder
from cluster.errors import NotFoundError, RaybridgeError, ServingError
from cluster.runtime import open_session
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import ModelVersion, Tracking
from serve.client import Client
from serve.config import ServeConfig
from serve.deployment import Ingress, ServeCluster
from serve.document import Owner, ServedDocument, ServedDocuments, ServedVersion
from serve.owners import other_owners, own_cluster
from serve.rollout import next_document, roll_out

_ANSWER_TIMEOUT_S = 30.0

Configure = Callable[[ServeConfig], ServeConfig]
"""Lays what the user said over the settings that hold so far."""


@dataclass(frozen=True)
class Deployed:
    """The outcome of a deployment."""

    version: ModelVersion
    bundle: Bundle
    document: ServedDocument
    ingress: Ingress
    replicas: int
    action: str
    """``started``, ``rolled out``, ``replaced`` or ``unchanged``."""
    notes: tuple[str, ...]

    def curl(self, url: str) -> str:
        """A shell line that classifies an image."""
        return (
            f"curl --data-binary @IMAGE.png -H 'Content-Type: image/png' "
            f"{url}/v2/models/{self.version.name}/classify"
        )

    def python(self, url: str) -> str:
        """A Python line that does the same."""
        return (
            "from pathlib import Path; from serve.client import Client; "
            f'print(Client("{url}").classify("{self.version.name}", '
            'Path("IMAGE.png").read_bytes()))'
        )


def deploy(
    settings: Settings,
    version: ModelVersion,
    bundle: Bundle,
    configure: Configure,
    say: Callable[[str], None],
) -> Deployed:
    """Serve a registered version on the connected cluster.

    A model that runs already is rolled over to the version without a lost request; its settings
    hold unless ``configure`` changes them, in which case its replicas are replaced one by one.

    Raises:
        RaybridgeError: it cannot be served. What was served before still is.
    """
    cluster, own = ServeCluster(), own_cluster()
    documents = ServedDocuments(Store.open(settings.address))
    with documents.changing(version.name):
        others = other_owners(documents, version.name, own)
        previous = documents.read(version.name)
        app = cluster.states().get(version.name)
        running = app is not None and app.serves
        base = previous.config if previous and running else ServeConfig()
        current = cluster.ingress()
        if current is not None:
            listening = {"host": current.host, "port": current.port}
            base = base.with_changes({"http": listening}, "the running Serve")
        config = configure(base)
        # Here rather than on the replicas: a bundle that must not be served changes nothing.
        open_session(bundle, engine=config.replica.engine, num_threads=config.replica.threads)
        http_ingress = cluster.start(config.http)
        cluster.begin_root(settings.address, http_ingress)
        path = Path(bundle_folder(documents.store, bundle.digest).name)
        served = ServedVersion(version=version.version, digest=bundle.digest, path=path)
        document = next_document(version.name, served, config, previous, (own, *others))
        if previous is not None and running:
            action, document, replicas = _change(cluster, documents, previous, document, settings)
        else:
            say(f"starting {version.reference} ...")
            action = "started"
            new = app is None
            replicas = _start(
                cluster, documents, previous, document, settings, http_ingress, new=new
            )
    notes = [*http_ingress.notes]
    notes += [
        f"another Ray cluster, {other}, serves {version.name} from this store too, and follows"
        for other in others
    ]
    for note in (cluster.placement_note(http_ingress), cluster.root_problem()):
        if note is not None:
            notes.append(note)
    _wait_until_answering(http_ingress.url, document)
    return Deployed(version, bundle, document, http_ingress, replicas, action, tuple(notes))


def resolve(settings: Settings, reference: str) -> tuple[ModelVersion, Bundle]:
    """The registered version and its verified bundle."""
    tracking = Tracking(settings)
    version = tracking.resolve(reference)
    return version, tracking.fetch_bundle(version)


def _start(
    cluster: ServeCluster,
    documents: ServedDocuments,
    previous: ServedDocument | None,
    document: ServedDocument,
    settings: Settings,
    http_ingress: Ingress,
    *,
    new: bool,
) -> int:
    """Run a model that does not answer on this cluster.

    Args:
        cluster: where.
        documents: of the store.
        previous: what is to hold again if it does not come up.
        document: what is to be served.
        settings: name the store.
        http_ingress: how it is reached.
        new: whether this cluster runs nothing of it, and so is to keep nothing of it.
    """
    documents.write(document)
    try:
        cluster.run_model(document.model, settings.address, document.config, http_ingress)
    except RaybridgeError:
        if new:
            _take_back(documents, previous, document)
            cluster.delete([document.model], and_root=False)
        raise
    state = cluster.states().get(document.model)
    return state.running if state else 0


def _take_back(
    documents: ServedDocuments, previous: ServedDocument | None, document: ServedDocument
) -> None:
    """Let what was served before hold again: another cluster may follow it."""
    if previous is None:
        documents.remove(document.model)
    else:
        later = {"generation": document.generation + 1}
        documents.write(previous.model_copy(update=later))


def _change(
    cluster: ServeCluster,
    documents: ServedDocuments,
    previous: ServedDocument,
    document: ServedDocument,
    settings: Settings,
) -> tuple[str, ServedDocument, int]:
    """Bring a running model to a new version, new settings, or both."""
    model = document.model
    fleet = cluster.fleet(model)
    same_versions = previous.versions == document.versions
    same_settings = previous.config == document.config
    if same_versions and same_settings:
        return "unchanged", previous, cluster.states()[model].running
    replicas = roll_out(documents, fleet, document)
    if same_settings:
        return "rolled out", document, replicas
    http_ingress = cluster.ingress()
    if http_ingress is None:
        raise ServingError("Ray Serve ended during the rollout")
    try:
        cluster.run_model(model, settings.address, document.config, http_ingress)
    except RaybridgeError:
        # Serve keeps the replicas that run; the document tells which settings they have.
        restored = document.model_copy(
            update={"generation": document.generation + 1, "config": previous.config}
        )
        documents.write(restored)
        raise
    return "replaced", document, cluster.states()[model].running


def _wait_until_answering(url: str, document: ServedDocument) -> None:
    """The routes of the proxy follow the replicas by a moment."""
    if document.config.scaling.min_replicas == 0:
        return
    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    with Client(url, retry_for_s=0) as client:
        while not (client.ready(document.model)):
            if time.monotonic() > deadline:
                raise ServingError(
                    f"replicas of {document.model!r} run, but {url} does not reach them"
                )
            time.sleep(0.1)


def down(settings: Settings, model: str | None, say: Callable[[str], None]) -> list[str]:
    """End one model, or all of ours; the last one takes Serve with it. Returns what ended.

    Raises:
        NotFoundError: the model is not served.
        ServingError: it is, by another cluster.
    """
    cluster, own = ServeCluster(), own_cluster()
    documents = ServedDocuments(Store.open(settings.address))
    served = list(cluster.states())
    if model is not None and model not in served:
        if forget(settings, model, say, own):
            return [model]
        raise NotFoundError(
            f"model {model!r} is not served; there are: {', '.join(served) or 'none'}"
        )
    if cluster.ingress() is None:
        return []
    ending = [model] if model is not None else served
    ends_serve = len(ending) == len(served) and not cluster.others()
    with contextlib.ExitStack() as held:
        for name in ending:
            held.enter_context(documents.changing(name))
        if ends_serve:
            cluster.shutdown()
        else:
            cluster.delete(ending, and_root=len(ending) == len(served))
        for name in ending:
            _leave(documents, name, own, say)
    return ending


def _leave(documents: ServedDocuments, model: str, own: Owner, say: Callable[[str], None]) -> None:
    """Remove the document of a model that ended here, unless another cluster follows it."""
    others = other_owners(documents, model, own)
    document = documents.read(model) if others else None
    if document is None:
        documents.remove(model)
        return
    documents.write(document.model_copy(update={"owners": others}))
    for other in others:
        say(f"note: {model} is still served by another Ray cluster, {other}")


def forget(
    settings: Settings, model: str, say: Callable[[str], None], own: Owner | None = None
) -> bool:
    """Remove the document that a cluster left behind when it ended.

    Args:
        settings: name the store.
        model: whose document.
        say: told what was removed.
        own: the cluster that this process is connected to, which does not run the model.

    Returns:
        Whether there was one.

    Raises:
        ServingError: a cluster that serves by it answers.
    """
    documents = ServedDocuments(Store.open(settings.address))
    if model not in documents.models():
        return False
    with documents.changing(model):
        for other in other_owners(documents, model, own):
            raise ServingError(
                f"model {model!r} is served from this store by another Ray cluster, {other}: end "
                f"it there with `python -m serve down {model}`; if it is another cluster by now "
                f"that answers there, remove serving/{model}.json from the store"
            )
        documents.remove(model)
    say(f"no Ray cluster that answers serves {model}; its document in the store is removed")
    return True
