"""One model over HTTP, as a bare ASGI application: the Open Inference Protocol and ``classify``.

    GET   /v2/models/NAME[/versions/V]                metadata
    GET   /v2/models/NAME[/versions/V]/ready
    POST  /v2/models/NAME[/versions/V]/infer          tensors, JSON or binary
    POST  /v2/models/NAME[/versions/V]/classify       an encoded image

Every answer carries ``x-raybridge-version`` and ``x-raybridge-replica``; every refusal is JSON with
an ``error``.
"""

import asyncio
import functools
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt

from cluster.images import ImageError, decode_image
from cluster.runtime import softmax
from serve.batcher import ClosedError
from serve.config import ReplicaConfig
from serve.http import (
    REPLICA_HEADER,
    VERSION_HEADER,
    Disconnected,
    Header,
    Headers,
    Receive,
    Scope,
    Send,
    WhileConnected,
    media_type,
    method_not_allowed,
    read_body,
    request_headers,
    request_id,
    run_lifespan,
    send_error,
    send_response,
)
from serve.metrics import NO_VERSION, Meter
from serve.predictor import LoadedModel, Predictor
from serve.protocol import (
    HEADER_LENGTH,
    JSON_TYPE,
    RequestError,
    encode_infer,
    encode_json,
    model_metadata,
    parse_infer,
)

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

RETRY_AFTER = (b"retry-after", b"1")
_METHODS = {"metadata": "GET", "ready": "GET", "infer": "POST", "classify": "POST"}
_INFER_TYPES = (b"", b"application/json", b"application/octet-stream")
# An image of this many bytes and pixels is decoded by the thread that runs its batch: a hop to
# another thread costs more than that. Larger ones would hold up everyone else's batch.
_SMALL_BYTES = 32 * 1024
_SMALL_PIXELS = 512 * 512
_FEW_NUMBERS = 10_000
"""Logits that are written as text in a few milliseconds."""
_DECODE_THREADS = 2
_CLIENT_GONE = 499
_JSON_HEADERS = ((b"content-type", JSON_TYPE),)


@dataclass(frozen=True, slots=True)
class _Answer:
    body: bytes
    headers: tuple[Header, ...] | list[Header]
    model: LoadedModel


class ModelApp:
    """Answers for one model."""

    def __init__(
        self, predictor: Predictor, config: ReplicaConfig, meter: Meter, replica: str
    ) -> None:
        """``replica`` is the name of this replica, which its answers carry."""
        self._predictor = predictor
        self._config = config
        self._meter = meter
        self._prefix = f"/v2/models/{predictor.name}"
        self._replica_mark = (REPLICA_HEADER, replica.encode("latin-1"))
        self._decoders = ThreadPoolExecutor(_DECODE_THREADS, thread_name_prefix="decode")
        self._active = 0

    @property
    def in_work(self) -> int:
        """Requests that came and are not answered yet."""
        return self._active

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = time.perf_counter()
        endpoint, version, status = "unknown", NO_VERSION, 200
        self._active += 1
        try:
            endpoint, wanted = self._route(scope)
            answer = await self._answer(endpoint, wanted, scope, receive)
            version = answer.model.spec.version
            await send_response(send, 200, answer.body, answer.headers, self._marks(answer.model))
        except RequestError as error:
            status = error.status
            await send_error(send, error, self._marks(self._predictor.table.main))
        except Disconnected:
            status = _CLIENT_GONE
        except Exception:
            # The boundary of a request: whatever it is, the client gets JSON and we keep serving.
            logger.exception("model %s: %s failed", self._predictor.name, endpoint)
            status = 500
            failure = RequestError(500, "the model failed on this request; see the replica's log")
            await send_error(send, failure, self._marks(self._predictor.table.main))
        finally:
            self._active -= 1
            latency_ms = (time.perf_counter() - started) * 1000
            self._meter.request(endpoint, version, status, latency_ms)

    def _marks(self, model: LoadedModel) -> tuple[Header, ...]:
        return ((VERSION_HEADER, model.version_header), self._replica_mark)

    def _route(self, scope: Scope) -> tuple[str, str | None]:
        """The endpoint and the version in the path, if one is."""
        # Serve mounts us under the prefix; a server of ours in front may add another one.
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        parts = path.removeprefix(self._prefix).strip("/").split("/")
        version = None
        if parts[0] == "versions" and len(parts) > 1:
            version, parts = parts[1], parts[2:] or [""]
        endpoint = parts[0] or "metadata"
        if len(parts) != 1 or endpoint not in _METHODS or parts[0] == "metadata":
            raise RequestError(
                404,
                f"model {self._predictor.name!r} has no such endpoint; there are "
                f"{self._prefix}[/versions/V] and under it /ready, /infer, /classify",
            )
        if scope["method"] != _METHODS[endpoint]:
            raise method_not_allowed(scope["method"], _METHODS[endpoint])
        return endpoint, version

    async def _answer(
        self, endpoint: str, version: str | None, scope: Scope, receive: Receive
    ) -> _Answer:
        if endpoint == "metadata":
            return self._metadata(self._choose(version, steady=True))
        if endpoint == "ready":
            model = self._choose(version, steady=True)
            state = {"name": self._predictor.name, "version": model.spec.version, "ready": True}
            return _Answer(encode_json(state), _JSON_HEADERS, model)
        if self._active > self._config.max_queued:
            raise RequestError(
                503,
                f"overloaded: this replica works on {self._config.max_queued} requests already",
                (RETRY_AFTER,),
            )
        headers = request_headers(scope)
        self._check_media_type(endpoint, headers)
        self._choose(version)  # A version that is not served is refused before its body is read.
        body = await read_body(receive, headers, self._config.max_body_bytes)
        with WhileConnected(receive):
            if endpoint == "infer":
                return await self._infer(body, headers, version)
            top_k = _top_k(scope["query_string"])
            return await self._classify(body, headers, version, top_k)

    def _choose(self, version: str | None, *, steady: bool = False) -> LoadedModel:
        """The version to use; ``steady`` takes the main one instead of drawing."""
        if version is None and steady:
            return self._predictor.table.main
        model = self._predictor.choose(version)
        if model is None:
            served = ", ".join(self._predictor.table.models)
            raise RequestError(
                404,
                f"model {self._predictor.name!r} does not serve version {str(version)[:20]!r}; "
                f"it serves: {served}",
            )
        return model

    def _check_media_type(self, endpoint: str, headers: Headers) -> None:
        given = media_type(headers)
        if endpoint == "infer":
            if given not in _INFER_TYPES:
                raise RequestError(
                    415,
                    "infer takes application/json or application/octet-stream; "
                    "POST an image to /classify",
                )
            if given == b"application/octet-stream" and HEADER_LENGTH not in headers:
                raise RequestError(
                    400, "a binary body needs the header Inference-Header-Content-Length"
                )
        elif given not in (b"", b"application/octet-stream") and not given.startswith(b"image/"):
            raise RequestError(
                415, "classify takes the bytes of one image as image/* or application/octet-stream"
            )

    def _metadata(self, model: LoadedModel) -> _Answer:
        extra: dict[str, Any] = {
            "image": model.manifest.image.model_dump(),
            "bundle_digest": model.digest,
            "max_body_bytes": self._config.max_body_bytes,
        }
        body = model_metadata(model.spec, list(self._predictor.table.models), extra)
        return _Answer(body, _JSON_HEADERS, model)

    async def _infer(self, body: bytes, headers: Headers, version: str | None) -> _Answer:
        header_length = headers.get(HEADER_LENGTH)
        while True:
            model = self._choose(version)
            if header_length is None and len(body) > _SMALL_BYTES:
                request = await self._aside(parse_infer, body, header_length, model.spec)
            else:
                request = parse_infer(body, header_length, model.spec)
            try:
                logits = await model.batcher.submit(request.images, len(request.images))
            except ClosedError:
                continue
            if logits.size > _FEW_NUMBERS:
                answer = await self._aside(encode_infer, request, logits, model.spec)
            else:
                answer = encode_infer(request, logits, model.spec)
            return _Answer(*answer, model)

    async def _aside(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call what takes long in a thread of its own, so that others are answered meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *args)

    async def _classify(
        self, body: bytes, headers: Headers, version: str | None, top_k: int | None
    ) -> _Answer:
        if not body:
            raise RequestError(400, "the body is empty; expected the bytes of one image")
        while True:
            model = self._choose(version)
            try:
                logits = await self._run_image(model, body)
            except ClosedError:
                continue
            except ImageError as error:
                status = {"size": 413, "format": 415, "content": 400}[error.reason]
                raise RequestError(status, str(error)) from None
            encoded = _encode_prediction(model, logits[0], request_id(headers), top_k)
            return _Answer(encoded, _JSON_HEADERS, model)

    async def _run_image(self, model: LoadedModel, body: bytes) -> npt.NDArray[np.float32]:
        if len(body) <= _SMALL_BYTES:
            max_pixels = min(_SMALL_PIXELS, self._config.max_pixels)
            decode = functools.partial(_decode, body, model, max_pixels)
            try:
                return await model.batcher.submit(decode, 1)
            except ImageError as error:
                if error.reason != "size":
                    raise
        images = await self._aside(_decode, body, model, self._config.max_pixels)
        return await model.batcher.submit(images, 1)


def _decode(body: bytes, model: LoadedModel, max_pixels: int) -> npt.NDArray[np.uint8]:
    pixels = decode_image(body, model.manifest.image, max_bytes=len(body), max_pixels=max_pixels)
    return pixels[None]


def _top_k(query: bytes) -> int | None:
    if not query:
        return None
    try:
        values = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise RequestError(400, "too many query parameters; there is: top_k") from None
    unknown = sorted(set(values) - {"top_k"})
    if unknown:
        raise RequestError(400, f"unknown query parameter {unknown[0][:40]!r}; there is: top_k")
    if not values:
        return None
    text = values["top_k"][-1]
    if not text.isdecimal() or len(text) > 6 or int(text) < 1:
        raise RequestError(400, f"top_k={text[:20]!r}: expected a whole number from 1 up")
    return int(text)


def _encode_prediction(
    model: LoadedModel, logits: npt.NDArray[np.float32], request: str, top_k: int | None
) -> bytes:
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    values = probabilities.tolist()
    names = model.encoded_class_names
    best = order[0]
    listed = ",".join(f"{names[index]}:{values[index]:.6g}" for index in order)
    return (
        f'{{"model":"{model.spec.name}","version":"{model.spec.version}",'
        f'"request_id":{json.dumps(request)},"label":{names[best]},"index":{best},'
        f'"probability":{values[best]:.6g},"probabilities":{{{listed}}}}}'
    ).encode()
