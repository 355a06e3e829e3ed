"""An object store through ``pyarrow.fs``: whole objects under one prefix, put and got by name.

What makes a store of it (which object makes a folder whole, what a node keeps) is in
:mod:`cluster.store`. An object is seen whole or not at all; nothing is renamed, and of two writers
the last one wins.
"""

import contextlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from cluster.errors import ConfigError, RaybridgeError, StoreError

_S3_OPTIONS = ("endpoint_override", "region", "scheme")
_GCS_OPTIONS = ("endpoint_override", "scheme", "retry_limit_seconds")
_AZURE_OPTIONS = (
    *("blob_storage_authority", "dfs_storage_authority", "enable_tls", "credential_kind"),
    *("client_id", "background_writes"),
)
OPTIONS = {
    "s3": _S3_OPTIONS,
    **dict.fromkeys(("gs", "gcs"), _GCS_OPTIONS),
    **dict.fromkeys(("abfs", "abfss"), _AZURE_OPTIONS),
}
"""Of an address, by its kind: stores that show an object whole or not at all. Those of pyarrow's
options that hold keys are left out, since addresses are shown."""
# Ray's health checks wait 30 s, and people less: pyarrow's own retries go on for minutes.
CONNECT_TIMEOUT_S = 3
REQUEST_TIMEOUT_S = 5
"""Without a single byte."""
ATTEMPTS = 3
GCS_RETRY_S = 15
THREADS = 16
_BLOCK = 8 << 20
_REFUSALS = (
    *("ACCESS_DENIED", "INVALID_ACCESS_KEY", "INVALID_CLIENT_TOKEN", "SIGNATURE", "FORBIDDEN"),
    *("UNRECOGNIZED_CLIENT", "EXPIRED_TOKEN", "HTTP status 403", "HTTP status 401"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED"),
)


@dataclass(frozen=True)
class StoredFile:
    """A file or an object, for who tidies up."""

    name: str
    """Relative to what was listed."""
    bytes: int
    changed_s: float
    """Seconds since 1970."""


class Remote:
    """Objects under a URI such as ``s3://bucket/prefix``. Making one connects to nothing.

    Raises:
        ConfigError: from every method: there is no such bucket, or it may not be accessed.
        StoreError: from every method: the object store does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.uri = check_uri(uri)
        self._parts = urlsplit(uri)
        self._connection: tuple[Any, str] | None = None
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes | None:
        """The content of an object, or None if there is none."""
        with self._explained(), contextlib.suppress(FileNotFoundError):
            files, prefix = self._connected()
            with files.open_input_stream(f"{prefix}/{name}") as stream:
                content: bytes = stream.read()
                return content
        return None

    def read_all(self, names: list[str]) -> list[bytes | None]:
        """As :meth:`read`, many at once."""
        with ThreadPoolExecutor(THREADS, "read") as pool:
            return list(pool.map(self.read, names))

    def write(self, name: str, content: bytes) -> None:
        """Make or replace an object."""
        with self._explained():
            files, prefix = self._connected()
            with files.open_output_stream(f"{prefix}/{name}") as stream:
                stream.write(content)

    def put(self, file: Path, name: str) -> None:
        """Make or replace an object from a file."""
        import pyarrow.fs as pa_fs

        with self._explained():
            files, prefix = self._connected()
            # Not a stream of our own: leaving that on Ctrl-C would complete half an object.
            pa_fs.copy_files(
                str(file),
                f"{prefix}/{name}",
                source_filesystem=pa_fs.LocalFileSystem(),
                destination_filesystem=files,
                chunk_size=_BLOCK,
                use_threads=False,
            )

    def get(self, name: str, file: Path) -> None:
        """Write an object to a file, which is replaced when all of it is there.

        Raises:
            FileNotFoundError: there is no such object.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.parent / f".{file.name}.{secrets.token_hex(4)}.draft"
        try:
            with self._explained(), draft.open("wb") as target:
                files, prefix = self._connected()
                with files.open_input_stream(f"{prefix}/{name}") as stream:
                    shutil.copyfileobj(stream, target, _BLOCK)
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        with self._explained():
            files, prefix = self._connected()
            return bool(files.get_file_info(f"{prefix}/{name}").is_file)

    def delete(self, name: str) -> None:
        """Remove an object, if there is one."""
        with self._explained(), contextlib.suppress(FileNotFoundError):
            files, prefix = self._connected()
            files.delete_file(f"{prefix}/{name}")

    def list(self, folder: str, *, recursive: bool = False) -> tuple[list[str], list[str]]:
        """Names of the objects and of the folders in a folder, in order, relative to it."""
        import pyarrow.fs as pa_fs

        with self._explained(), contextlib.suppress(FileNotFoundError):
            files, prefix = self._connected()
            place = f"{prefix}/{folder}"
            found = files.get_file_info(pa_fs.FileSelector(place, recursive=recursive))
            names = [(one.is_file, one.path.removeprefix(f"{place}/")) for one in found]
            objects = sorted(name for is_file, name in names if is_file)
            return objects, sorted(name for is_file, name in names if not is_file)
        return [], []

    def details(self, folder: str) -> tuple[StoredFile, ...]:
        """Every object in a folder and the folders in it, in order."""
        import pyarrow.fs as pa_fs

        with self._explained(), contextlib.suppress(FileNotFoundError):
            files, prefix = self._connected()
            place = f"{prefix}/{folder}"
            found = files.get_file_info(pa_fs.FileSelector(place, recursive=True))
            return tuple(
                StoredFile(one.path.removeprefix(f"{place}/"), one.size, one.mtime.timestamp())
                for one in sorted(found, key=lambda one: one.path)
                if one.is_file
            )
        return ()

    def upload(self, path: Path, folder: str, last: str) -> None:
        """Put every file of a local folder, ``last`` after all the others."""
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        for name in sorted(names, key=lambda name: (name == last, name)):
            self.put(path / name, f"{folder}/{name}")

    def download(self, folder: str, path: Path) -> None:
        """Get every object of a folder."""
        objects, _ = self.list(folder, recursive=True)
        with ThreadPoolExecutor(THREADS, "download") as pool:
            list(pool.map(lambda name: self.get(f"{folder}/{name}", path / name), objects))

    def _connected(self) -> tuple[Any, str]:
        with self._lock:
            if self._connection is None:
                connect = _connect_s3 if self._parts.scheme == "s3" else _connect_other
                self._connection = connect(self.uri)
            return self._connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn pyarrow's errors into ours; those of local files have a number and pass."""
        import pyarrow as pa  # Takes a moment, and most commands need no object store.

        try:
            yield
        except pa.ArrowException as error:
            raise self._explain(error) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> RaybridgeError:
        said = " ".join(str(error).split())[:300]
        bucket = self._parts.netloc
        kind = said.upper()
        if "NO_SUCH_BUCKET" in kind or f"BUCKET '{bucket.upper()}' NOT FOUND" in kind:
            return ConfigError(
                f"{self.uri}: there is no bucket {bucket}; make it, or name another in "
                "RAYBRIDGE_STORE"
            )
        if any(refusal.upper() in kind for refusal in _REFUSALS):
            return ConfigError(
                f"{self.uri} refuses access: {said}; this node's credentials come from its own "
                "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or its files"
            )
        if "REGION" in kind or "REDIRECT" in kind or "HTTP STATUS 301" in kind:
            return ConfigError(
                f"{self.uri}: the bucket's region is another, or was not found: {said}; name it: "
                "?region=REGION, or AWS_REGION"
            )
        return StoreError(f"{self.uri} does not answer: {said}")


def check_uri(uri: str) -> str:
    """Return ``uri`` if a store can be kept there; nothing is connected to.

    Raises:
        ConfigError: its kind, an option of it, or a key inside it.
    """
    shown = f"RAYBRIDGE_STORE={hide_login(uri).partition('?')[0]}"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ConfigError(f"{shown}: {error}") from None
    if parts.scheme not in OPTIONS:
        raise ConfigError(
            f"{shown}: no store of kind {parts.scheme}://; give the absolute path of a folder, or "
            f"a URI that begins with {', '.join(f'{one}://' for one in OPTIONS)}"
        )
    options = dict(parse_qsl(parts.query))
    # Of Azure, a container stands before the @, and a port may follow the host; of others neither.
    azure = parts.scheme.startswith("abfs")
    keyed = parts.password is not None if azure else re.search("[:@]", parts.netloc)
    if keyed or "@" in options.get("endpoint_override", ""):
        raise ConfigError(
            f"{shown}: every node and Ray's dashboard show this address; keep keys out of it, and "
            "in each node's environment"
        )
    if not parts.netloc:
        raise ConfigError(f"{shown}: it names no bucket")
    for name in options:
        if name not in OPTIONS[parts.scheme]:
            allowed = ", ".join(OPTIONS[parts.scheme])
            raise ConfigError(
                f"{shown}: no option {name} (keys belong into each node's environment); allowed: "
                f"{allowed}"
            )
    return uri


def hide_login(uri: str) -> str:
    """An address without what stands before its ``@``, for messages."""
    return re.sub(r"//.*@", "//...@", uri)


def complete_uri(uri: str) -> str:
    """Write into an S3 address what this environment says of the server.

    So it means the same on every node. Keys stay where they are.

    Raises:
        ConfigError: the environment's server is none.
    """
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if parts.scheme != "s3":
        return uri
    if endpoint and "endpoint_override" not in options:
        server = re.fullmatch(r"(https?)://([^/@\s]+)/?", endpoint)
        if server is None:
            raise ConfigError(f"AWS_ENDPOINT_URL={hide_login(endpoint)}: expected http://HOST:PORT")
        options |= {"endpoint_override": server[2], "scheme": server[1]}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region and "region" not in options:
        options["region"] = region
    return parts._replace(query=urlencode(options)).geturl()


def _connect_s3(uri: str) -> tuple[Any, str]:
    import pyarrow.fs as pa_fs

    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    if "region" not in options:
        # A server of one's own has none; Amazon's tells in which one a bucket is.
        options["region"] = (
            "us-east-1" if "endpoint_override" in options else pa_fs.resolve_s3_region(parts.netloc)
        )
    files = pa_fs.S3FileSystem(
        **options,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=pa_fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )
    return files, f"{parts.netloc}{parts.path}".rstrip("/")


def _connect_other(uri: str) -> tuple[Any, str]:
    import pyarrow.fs as pa_fs

    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    if parts.scheme in ("gs", "gcs"):
        options.setdefault("retry_limit_seconds", str(GCS_RETRY_S))
    files, path = pa_fs.FileSystem.from_uri(parts._replace(query=urlencode(options)).geturl())
    return files, path.rstrip("/")
