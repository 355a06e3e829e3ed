"""The model registry of MLflow, behind the few calls that we make."""

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.atomic import drafting
from cluster.bundle import (
    MANIFEST_FILE,
    Bundle,
    Manifest,
    bundle_folder,
    decode_manifest,
    find_bundle,
    publish_bundle,
)
from cluster.connection import RUN_TAG, Connection, asks, first_line, is_missing, is_outage
from cluster.errors import BundleError, NotFoundError, RaybridgeError, UserError
from cluster.store import check_name

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"
_DIGEST_TAG = "raybridge.bundle_digest"
_REFERENCE = re.compile(r"(?P<name>[^@:]+)(@(?P<alias>[^@:]+)|:(?P<version>\d+))?")


@dataclass(frozen=True)
class ModelVersion:
    """One registered version of a model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    digest: str
    """Digest of its bundle."""
    run: str
    metrics: dict[str, float]
    created_ms: int

    @property
    def reference(self) -> str:
        """``NAME:VERSION``."""
        return f"{self.name}:{self.version}"


class Registry(Connection):
    """Registered models and their bundles."""

    @asks
    def register(
        self,
        name: str,
        bundle: Bundle,
        *,
        run_id: str | None,
        aliases: Sequence[str] = (),
    ) -> ModelVersion:
        """Make ``bundle`` a new version of model ``name``.

        Registering the same bundle again returns the version it has. The first version of a model
        becomes its champion.

        Raises:
            RaybridgeError: MLflow refused.
        """
        check_name("model", name)
        try:
            known = self._versions(name) if self._has_model(name) else []
            for version in known:
                if version.digest == bundle.digest:
                    return self._with_aliases(version, aliases)
            if not self._has_model(name):
                self._client.create_registered_model(name)
            if run_id is None:
                run_id = self._client.create_run(
                    self._own_experiment(), run_name=bundle.manifest.lineage.run
                ).info.run_id
                self._client.set_terminated(run_id)
            # A folder of its own: one run may be exported again, and its versions must not mix.
            folder = f"bundle-{bundle.digest[:16]}"
            self._client.log_artifacts(run_id, str(bundle.path), artifact_path=folder)
            root = self._client.get_run(run_id).info.artifact_uri
            tags = {_DIGEST_TAG: bundle.digest, RUN_TAG: bundle.manifest.lineage.run}
            for metric, value in bundle.manifest.metrics.items():
                tags[f"raybridge.metric.{metric}"] = repr(value)
            entity = self._client.create_model_version(
                name, source=f"{root}/{folder}", run_id=run_id, tags=tags
            )
            made = self._client.get_model_version(name, entity.version)
        except self._error as error:
            if is_outage(error):
                raise
            raise RaybridgeError(f"MLflow refused model {name!r}: {first_line(error)}") from None
        first = () if known else (CHAMPION,)
        return self._with_aliases(_to_version(made), (*first, *aliases))

    @asks
    def set_alias(self, version: ModelVersion, alias: str) -> ModelVersion:
        """Point an alias at a version."""
        return self._with_aliases(version, (alias,))

    @asks
    def resolve(self, reference: str) -> ModelVersion:
        """Find ``MODEL``, ``MODEL@ALIAS`` or ``MODEL:VERSION``; a bare name is its champion.

        Raises:
            UserError: the reference is not of that form.
            NotFoundError: no such model, alias or version.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise UserError(f"model {reference!r}: expected MODEL, MODEL@ALIAS or MODEL:VERSION")
        name = check_name("model", match["name"])
        if not self._has_model(name):
            known = ", ".join(model for model, _ in self.models()) or "none yet"
            raise NotFoundError(f"no model {name!r} in the registry; there are: {known}")
        alias = match["alias"] or (None if match["version"] else CHAMPION)
        try:
            if alias is not None:
                found = self._client.get_model_version_by_alias(name, alias)
            else:
                found = self._client.get_model_version(name, match["version"])
        except self._error as error:
            if not is_missing(error):
                raise
            listed = ", ".join(
                f"{version.version}" + "".join(f" @{alias}" for alias in version.aliases)
                for version in self._versions(name)
            )
            wanted = f"alias @{alias}" if alias else f"version {match['version']}"
            raise NotFoundError(f"model {name!r} has no {wanted}; versions: {listed}") from None
        return _to_version(self._client.get_model_version(name, found.version))

    @asks
    def fetch_bundle(self, version: ModelVersion) -> Bundle:
        """The verified bundle of a version, copied once into the store, by digest.

        Raises:
            RaybridgeError: its files cannot be had.
            BundleError: they are damaged or are not the ones that were registered.
        """
        found = find_bundle(self._store, version.digest)
        if found is None:
            return self._download(version)
        folder = bundle_folder(self._store, found.digest)
        folder.restore(MANIFEST_FILE)  # Of an object store only this node may have it.
        folder.touch(
            MANIFEST_FILE
        )  # `cluster gc` goes by age, and whoever asks is about to use it.
        return found

    def _download(self, version: ModelVersion) -> Bundle:
        from mlflow.artifacts import download_artifacts

        source = self._client.get_model_version_download_uri(version.name, str(version.version))
        with drafting(self._store.bundles, version.digest) as draft:
            try:
                got = Path(
                    download_artifacts(
                        artifact_uri=source,
                        dst_path=str(draft),
                        tracking_uri=self.uri,
                    )
                )
            except (self._error, OSError) as error:
                raise RaybridgeError(
                    f"the bundle of {version.reference} cannot be had from {source}: "
                    f"{first_line(error)}"
                ) from None
            # Before it can be seen: what arrived damaged must be fetched again next time.
            if Bundle.open(got).digest != version.digest:
                raise RaybridgeError(
                    f"the bundle of {version.reference} is not the one that was registered"
                )
            return publish_bundle(self._store, got)

    @asks
    def manifest(self, version: ModelVersion) -> Manifest:
        """What the bundle of a version says of itself; the rest of it is not fetched.

        Raises:
            RaybridgeError: it cannot be had.
            BundleError: it is not the one that was registered.
        """
        content = bundle_folder(self._store, version.digest).read(MANIFEST_FILE)
        if content is None:
            from mlflow.artifacts import download_artifacts

            source = self._client.get_model_version_download_uri(version.name, str(version.version))
            with tempfile.TemporaryDirectory() as folder:
                try:
                    got = download_artifacts(
                        artifact_uri=f"{source}/{MANIFEST_FILE}",
                        dst_path=folder,
                        tracking_uri=self.uri,
                    )
                    content = Path(got).read_bytes()
                except (self._error, OSError) as error:
                    raise RaybridgeError(
                        f"the manifest of {version.reference} cannot be had from {source}: "
                        f"{first_line(error)}"
                    ) from None
        if hashlib.sha256(content).hexdigest() != version.digest:
            raise BundleError(
                f"the manifest of {version.reference} is not the one that was registered"
            )
        return decode_manifest(content, f"the manifest of {version.reference}")

    @asks
    def models(self) -> list[tuple[str, list[ModelVersion]]]:
        """Every model with its versions, newest first."""
        found: dict[str, Mapping[str, int]] = {}
        token: str | None = None
        while True:
            page = self._client.search_registered_models(max_results=1000, page_token=token)
            found |= {model.name: model.aliases for model in page}
            token = page.token
            if not token:
                break
        versions = self._search(None, found)
        return [(name, [one for one in versions if one.name == name]) for name in found]

    @asks
    def versions(self, name: str) -> list[ModelVersion]:
        """The versions of one model, newest first.

        Raises:
            UserError: the name is none that we could have given.
            NotFoundError: there is no such model.
        """
        if not self._has_model(check_name("model", name)):
            raise NotFoundError(f"no model {name!r} in the registry")
        return self._versions(name)

    def _versions(self, name: str) -> list[ModelVersion]:
        aliases = self._client.get_registered_model(name).aliases
        return self._search(f"name='{check_name('model', name)}'", {name: aliases})

    def _search(
        self, wanted: str | None, aliases: Mapping[str, Mapping[str, int]]
    ) -> list[ModelVersion]:
        """Versions, newest first. Search does not fill in aliases; the registered model does."""
        versions: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self._client.search_model_versions(wanted, 10_000, page_token=token)
            for entity in page:
                own = aliases.get(entity.name, {}).items()
                named = [alias for alias, number in own if str(number) == str(entity.version)]
                versions.append(_to_version(entity, named))
            token = page.token
            if not token:
                return sorted(versions, key=lambda version: version.version, reverse=True)

    def _has_model(self, name: str) -> bool:
        try:
            self._client.get_registered_model(name)
        except self._error as error:
            if not is_missing(error):
                raise
            return False
        return True

    def _with_aliases(self, version: ModelVersion, aliases: Sequence[str]) -> ModelVersion:
        for alias in aliases:
            try:
                self._client.set_registered_model_alias(version.name, alias, str(version.version))
            except self._error as error:
                if is_outage(error):
                    raise
                raise UserError(
                    f"alias {alias!r} of {version.reference}: {first_line(error)}"
                ) from None
        entity = self._client.get_model_version(version.name, str(version.version))
        return _to_version(entity)


def _to_version(entity: "MlflowModelVersion", aliases: Sequence[str] | None = None) -> ModelVersion:
    tags: Mapping[str, str] = entity.tags
    prefix = "raybridge.metric."
    return ModelVersion(
        name=entity.name,
        version=int(entity.version),
        aliases=tuple(sorted(entity.aliases if aliases is None else aliases)),
        digest=tags.get(_DIGEST_TAG, ""),
        run=tags.get(RUN_TAG, ""),
        metrics={
            key.removeprefix(prefix): float(value)
            for key, value in tags.items()
            if key.startswith(prefix)
        },
        created_ms=int(entity.creation_timestamp or 0),
    )
