"""A client for the serving endpoints. Needs numpy and urllib3, neither Ray nor torch.

    client = Client("http://127.0.0.1:8000")
    client.classify("digits", Path("seven.png").read_bytes()).label
    client.infer("digits", images)        # uint8 [n, C, H, W] -> float32 [n, K]

One client may be shared between threads. What fails because a replica, the proxy or the machine
went away is tried again for up to 15 seconds; inference changes nothing, so that is safe.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import urllib3

from cluster.errors import NotFoundError, ServingError, UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8000"
RETRY_FOR_S = 15.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
# 500 is what Serve and HAProxy say when a replica dies under a request.
_RETRIED_STATUS = frozenset({500, 502, 503, 504})
_VERSION_HEADER = "x-raybridge-version"
_HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Prediction:
    """What ``classify`` answers."""

    model: str
    version: str
    request_id: str
    label: str
    index: int
    probability: float
    probabilities: dict[str, float]
    """By class name, the likeliest first."""


class RejectedError(UserError):
    """The server refused a request; ``status`` is its 4xx code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Speaks to one server."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = 30.0,
        retry_for_s: float = RETRY_FOR_S,
        max_connections: int = 32,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Open nothing yet.

        Args:
            address: ``http://host:port``.
            timeout_s: longest wait for one answer.
            retry_for_s: how long a request that can be repeated is; 0 for a single try.
            max_connections: connections kept open, one for each thread that asks at once.
            clock: monotonic seconds.
            sleep: pauses between tries.

        Raises:
            UserError: the address is not an HTTP address.
        """
        if not _is_http(address):
            raise UserError(f"address {address!r}: expected http://host:port")
        self.address = address.rstrip("/")
        self._retry_for_s = retry_for_s
        self._clock = clock
        self._sleep = sleep
        self._pool = urllib3.PoolManager(
            maxsize=max_connections,
            timeout=urllib3.Timeout(connect=5.0, read=timeout_s),
            retries=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def live(self) -> bool:
        """Whether the server answers at all. Asks once."""
        return self._asks("/v2/health/live")

    def ready(self, model: str | None = None) -> bool:
        """Whether every model answers, or the one named. Asks once."""
        return self._asks(f"/v2/models/{model}/ready" if model else "/v2/health/ready")

    def models(self) -> list[dict[str, Any]]:
        """Name, versions and readiness of every served model."""
        listed: list[dict[str, Any]] = self._json("GET", "/v2/models")["models"]
        return listed

    def only_model(self) -> str:
        """The one model that is served.

        Raises:
            UserError: none is, or several are.
        """
        names = [str(model["name"]) for model in self.models()]
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise UserError(f"say which model; {self.address} serves: {listed}")
        return names[0]

    def metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        """Tensors, class names and versions of a model."""
        return self._json("GET", model_path(model, version))

    def infer(
        self, model: str, images: npt.NDArray[np.uint8], *, version: str | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits of a batch, as raw tensors both ways.

        Args:
            model: its name.
            images: uint8 ``[n, channels, height, width]``.
            version: one that is served; by default the server chooses by its shares.

        Returns:
            float32 ``[n, classes]``.

        Raises:
            RejectedError: the server refuses the request.
            ServingError: no answer, or a failure, for as long as is tried.
        """
        if images.dtype != np.uint8:
            raise UserError(f"images have dtype {images.dtype}; expected uint8")
        body, headers = binary_infer(images)
        path = f"{model_path(model, version)}/infer"
        answer = self._request("POST", path, body, headers)
        length = int(answer.headers[_HEADER_LENGTH])
        output = json.loads(answer.data[:length])["outputs"][0]
        logits = np.frombuffer(answer.data, dtype="<f4", offset=length)
        return logits.reshape(output["shape"])

    def classify(
        self,
        model: str,
        image: bytes,
        *,
        version: str | None = None,
        top_k: int | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Classify one encoded image (PNG, JPEG, WebP, BMP, GIF, TIFF).

        Raises:
            RejectedError: the server refuses the image or the request.
            ServingError: no answer, or a failure, for as long as is tried.
        """
        query = "" if top_k is None else f"?top_k={top_k}"
        # The same id on every try, so that a log shows them as one request.
        headers = {
            "Content-Type": "application/octet-stream",
            "x-request-id": request_id or uuid4().hex,
        }
        path = f"{model_path(model, version)}/classify{query}"
        return Prediction(**self._json("POST", path, image, headers))

    def _asks(self, path: str) -> bool:
        try:
            return self._once("GET", path, None, {}).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _json(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        answer = self._request(method, path, body, headers or {})
        try:
            values: dict[str, Any] = json.loads(answer.data)
        except ValueError:
            raise ServingError(f"{self.address}{path} did not answer with JSON") from None
        return values

    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        deadline = self._clock() + self._retry_for_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                answer = self._once(method, path, body, headers)
                if answer.status == 200:
                    return answer
                if not _may_pass(answer):
                    raise _refusal(answer, path)
                problem = f"status {answer.status}: {_error_text(answer)}"
            except urllib3.exceptions.HTTPError as error:
                problem = _connection_problem(error)
            if self._clock() + pause_s > deadline:
                raise ServingError(f"{self.address}{path}: {problem}")
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        return self._pool.request(
            method, f"{self.address}{path}", body=body, headers=dict(headers), redirect=False
        )


def _is_http(address: str) -> bool:
    try:
        parsed = urllib3.util.parse_url(address)
        # Names such as a..b are looked up by nobody, and urllib3 minds them only then.
        host = (parsed.host or "").encode("idna")
    except (urllib3.exceptions.LocationParseError, UnicodeError):
        return False
    return parsed.scheme in ("http", "https") and bool(host)


def model_path(model: str, version: str | None) -> str:
    """Path of a model, or of one of its versions."""
    return f"/v2/models/{model}" + (f"/versions/{version}" if version else "")


def binary_infer(images: npt.NDArray[np.uint8]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an infer request with raw tensors both ways.

    Args:
        images: uint8 ``[n, channels, height, width]``.
    """
    raw = images.tobytes()
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(images.shape),
        "parameters": {"binary_data_size": len(raw)},
    }
    values = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    header = json.dumps(values).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(header))}
    return header + raw, headers


def _may_pass(answer: urllib3.BaseHTTPResponse) -> bool:
    """Whether the same request may do better in a moment."""
    if answer.status == 404:
        # Ours says that the model is unknown; a proxy's, that its routes are not there yet.
        return _VERSION_HEADER not in answer.headers
    return answer.status in _RETRIED_STATUS


def _refusal(answer: urllib3.BaseHTTPResponse, path: str) -> Exception:
    text = _error_text(answer)
    if answer.status == 404:
        return NotFoundError(text)
    if 400 <= answer.status < 500:
        return RejectedError(text, answer.status)
    return ServingError(f"{path}: status {answer.status}: {text}")


def _error_text(answer: urllib3.BaseHTTPResponse) -> str:
    try:
        values = json.loads(answer.data)
        return str(values["error"])
    except (ValueError, KeyError, TypeError):
        return answer.data[:200].decode("utf-8", "replace").strip() or "no explanation"


def _connection_problem(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "nothing answers there"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no answer in time"
    return f"the connection broke ({type(error).__name__})"
