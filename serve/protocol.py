"""The Open Inference Protocol, version 2: requests in, responses out. Plain bytes and numpy.

A request is JSON, or JSON followed by raw tensors (the binary extension), or raw tensors alone.
Everything a client can get wrong is a :class:`RequestError` with a 4xx status.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from cluster.bundle import INPUT_NAME, OUTPUT_NAME, Manifest

JSON_TYPE = b"application/json"
BINARY_TYPE = b"application/octet-stream"
HEADER_LENGTH = b"inference-header-content-length"
EXTENSIONS = ("binary_tensor_data", "classification")
_MAX_DIMENSION = 2**63 - 1
_MAX_ID_CHARS = 256
_MAX_NAME_CHARS = 80


class RequestError(Exception):
    """A request that cannot be answered, with the status that says why."""

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


@dataclass(frozen=True)
class ModelSpec:
    """What a served version takes and gives."""

    name: str
    version: str
    shape: tuple[int, int, int]
    """``(channels, height, width)`` of one image."""
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, name: str, version: str, manifest: Manifest) -> "ModelSpec":
        """The spec of a bundle served as ``version`` of model ``name``."""
        return cls(name, version, manifest.image.shape, manifest.class_names)

    @property
    def image_bytes(self) -> int:
        """Bytes of one raw image."""
        return math.prod(self.shape)

    @property
    def num_classes(self) -> int:
        """Length of a row of logits."""
        return len(self.class_names)


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How the client wants the logits."""

    binary: bool
    top_k: int
    """0 for the logits themselves, else the classification extension's count."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A checked request."""

    request_id: str | None
    """The ``id`` to echo."""
    images: npt.NDArray[np.uint8]
    """uint8 ``[n, channels, height, width]``."""
    form: OutputForm


@dataclass(frozen=True, slots=True)
class _Header:
    request_id: str | None
    num_images: int
    data: Any
    """Nested or flat numbers; None when the tensor follows the header."""
    form: OutputForm


def parse_infer(body: bytes, header_length: bytes | None, spec: ModelSpec) -> InferRequest:
    """Read an infer request.

    Args:
        body: the whole body, decompressed.
        header_length: value of ``Inference-Header-Content-Length``; None means that all is JSON.
        spec: the model it is for.

    Raises:
        RequestError: 400, naming what is wrong and what is expected.
    """
    if header_length is None:
        header = _parse_header(body, spec)
        if header.data is None:
            _refuse(
                f"input {INPUT_NAME} has binary_data_size, but the request has no "
                "Inference-Header-Content-Length"
            )
        return InferRequest(header.request_id, _json_images(header, spec), header.form)
    length = _header_length(header_length, len(body))
    if length == 0:
        num_images = len(body) // spec.image_bytes
        if num_images == 0 or num_images * spec.image_bytes != len(body):
            _refuse(
                f"raw body of {len(body)} bytes; expected {spec.image_bytes} bytes for each image "
                f"of shape {list(spec.shape)}"
            )
        return InferRequest(None, _raw_images(body, 0, num_images, spec), _BINARY_LOGITS)
    start = body[:length]
    # Clients send the same few headers over and over: parse each once.
    header = _cached_header(start, spec) if length <= 1024 else _parse_header(start, spec)
    if header.data is not None:
        if len(body) != length:
            _refuse(f"{len(body) - length} bytes follow the JSON header, which announces none")
        return InferRequest(header.request_id, _json_images(header, spec), header.form)
    expected = header.num_images * spec.image_bytes
    if len(body) - length != expected:
        _refuse(f"{len(body) - length} bytes of tensors follow the header; expected {expected}")
    images = _raw_images(body, length, header.num_images, spec)
    return InferRequest(header.request_id, images, header.form)


def encode_infer(
    request: InferRequest, logits: npt.NDArray[np.float32], spec: ModelSpec
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The body of an infer response and the headers that describe it.

    Raises:
        RequestError: 422, if JSON is wanted and a logit is not a finite number.
    """
    form = request.form
    if form.top_k:
        output, raw = _classification(logits, form, spec)
    else:
        output, raw = _logits(logits, form)
    id_part = "" if request.request_id is None else f'"id":{json.dumps(request.request_id)},'
    head = (
        f'{{"model_name":"{spec.name}","model_version":"{spec.version}",{id_part}'
        f'"outputs":[{output}]}}'
    ).encode()
    if not form.binary:
        return head, [(b"content-type", JSON_TYPE)]
    return head + raw, [(b"content-type", BINARY_TYPE), (HEADER_LENGTH, b"%d" % len(head))]


def model_metadata(spec: ModelSpec, versions: list[str], extra: Mapping[str, Any]) -> bytes:
    """The body of the model metadata response."""
    return encode_json(
        {
            "name": spec.name,
            "versions": versions,
            "platform": "onnx_onnxv1",
            "inputs": [{"name": INPUT_NAME, "datatype": "UINT8", "shape": [-1, *spec.shape]}],
            "outputs": [{"name": OUTPUT_NAME, "datatype": "FP32", "shape": [-1, spec.num_classes]}],
            "properties": {"class_names": list(spec.class_names), **extra},
        }
    )


def encode_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


_BINARY_LOGITS = OutputForm(binary=True, top_k=0)


def _refuse(message: str) -> NoReturn:
    raise RequestError(400, message)


def _show(value: object) -> str:
    """A client's value, short enough to send back."""
    text = repr(value)
    return text if len(text) <= _MAX_NAME_CHARS else text[:_MAX_NAME_CHARS] + "..."


def _header_length(raw: bytes, body_length: int) -> int:
    if not raw.isdigit() or len(raw) > 18:
        _refuse(f"Inference-Header-Content-Length: {_show(raw.decode('latin-1'))} is not a length")
    length = int(raw)
    if length > body_length:
        _refuse(
            f"Inference-Header-Content-Length is {length}, but the body has {body_length} bytes"
        )
    return length


def _raw_images(
    body: bytes, offset: int, num_images: int, spec: ModelSpec
) -> npt.NDArray[np.uint8]:
    flat = np.frombuffer(body, dtype=np.uint8, offset=offset)
    return flat.reshape(num_images, *spec.shape)


def _reject_constant(name: str) -> NoReturn:
    _refuse(f"JSON: {name} is not a number that JSON knows")


def _parse_header(raw: bytes, spec: ModelSpec) -> _Header:
    try:
        values = json.loads(raw, parse_constant=_reject_constant)
    except RecursionError:
        _refuse("JSON: nested too deeply")
    except ValueError as error:
        # A UnicodeDecodeError's text would show the body; a JSONDecodeError's says where.
        where = str(error) if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        _refuse(f"JSON: {where}")
    if not isinstance(values, dict):
        _refuse("expected a JSON object with 'inputs'")
    request_id = values.get("id")
    if request_id is not None and (
        not isinstance(request_id, str) or len(request_id) > _MAX_ID_CHARS
    ):
        _refuse(f"id must be a string of at most {_MAX_ID_CHARS} characters")
    parameters = _parameters(values, "request")
    binary = _flag(parameters, "binary_data_output", False)
    form = _output_form(values.get("outputs"), binary, spec)
    num_images, data = _input(values.get("inputs"), spec)
    return _Header(request_id, num_images, data, form)


_cached_header: Callable[[bytes, ModelSpec], _Header] = functools.lru_cache(maxsize=256)(
    _parse_header
)


def _parameters(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        _refuse(f"parameters of the {what} must be an object")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        _refuse(f"parameter {name} must be true or false, not {_show(value)}")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tensors(values: object, kind: str, known: str) -> list[dict[str, Any]]:
    """Check a list of named tensors in which only ``known`` may appear, once."""
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        _refuse(f"{kind}s must be a list of objects")
    for value in values:
        if value.get("name") != known:
            _refuse(f"unknown {kind} {_show(value.get('name'))}; this model has: {known}")
    if len(values) > 1:
        _refuse(f"{kind} {known} is given {len(values)} times")
    return values


def _output_form(outputs: object, binary: bool, spec: ModelSpec) -> OutputForm:
    if outputs is None or outputs == []:
        return OutputForm(binary, 0)
    (output,) = _tensors(outputs, "output", OUTPUT_NAME)
    parameters = _parameters(output, f"output {OUTPUT_NAME}")
    binary = _flag(parameters, "binary_data", binary)
    top_k = parameters.get("classification", 0)
    if not _is_int(top_k) or top_k < 0:
        _refuse(f"parameter classification must be a count of classes, not {_show(top_k)}")
    return OutputForm(binary, min(top_k, spec.num_classes))


def _input(inputs: object, spec: ModelSpec) -> tuple[int, Any]:
    if inputs is None or inputs == []:
        _refuse(f"no inputs; this model takes {INPUT_NAME}: UINT8 {[-1, *spec.shape]}")
    (tensor,) = _tensors(inputs, "input", INPUT_NAME)
    datatype = tensor.get("datatype")
    if datatype != "UINT8":
        _refuse(f"input {INPUT_NAME} has datatype {_show(datatype)}; expected 'UINT8'")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(_is_int(size) for size in shape):
        _refuse(f"input {INPUT_NAME} needs a shape, a list of integers")
    # Python refuses to print integers of thousands of digits.
    if any(abs(size) > _MAX_DIMENSION for size in shape):
        _refuse(f"input {INPUT_NAME} has a shape with a dimension above {_MAX_DIMENSION}")
    if len(shape) != 4 or tuple(shape[1:]) != spec.shape or shape[0] < 1:
        _refuse(
            f"input {INPUT_NAME} has shape {_show(shape)}; expected {[-1, *spec.shape]}, "
            "where -1 is one or more images"
        )
    num_images: int = shape[0]
    size = _parameters(tensor, f"input {INPUT_NAME}").get("binary_data_size")
    data = tensor.get("data")
    if (size is None) == (data is None):
        _refuse(f"input {INPUT_NAME} needs data or parameters.binary_data_size, and not both")
    expected = num_images * spec.image_bytes
    if size is not None and (not _is_int(size) or size != expected):
        _refuse(
            f"input {INPUT_NAME} has binary_data_size {_show(size)}; shape {shape} takes {expected}"
        )
    return num_images, data


def _json_images(header: _Header, spec: ModelSpec) -> npt.NDArray[np.uint8]:
    shape = (header.num_images, *spec.shape)
    values = _flatten(header.data, shape)
    # np.array would turn one long string among the values into gigabytes, and True into 1.
    if set(map(type, values)) != {int}:
        _refuse(f"data of input {INPUT_NAME} must be integers from 0 to 255")
    try:
        raw = bytes(values)
    except ValueError:
        _refuse(f"data of input {INPUT_NAME} must be integers from 0 to 255")
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def _flatten(data: object, shape: tuple[int, ...]) -> list[Any]:
    """Row-major values of nested or flat lists of exactly this shape."""
    if not isinstance(data, list):
        _refuse(f"data of input {INPUT_NAME} must be a list")
    level: list[Any] = data
    expected = math.prod(shape)
    if level and isinstance(level[0], list):
        if len(level) != shape[0]:
            _refuse(f"data of input {INPUT_NAME} has {len(level)} images; shape says {shape[0]}")
        for size in shape[1:]:
            if not all(type(row) is list and len(row) == size for row in level):
                _refuse(f"data of input {INPUT_NAME} is not nested as its shape {list(shape)} says")
            level = list(itertools.chain.from_iterable(level))
    if len(level) != expected:
        _refuse(
            f"data of input {INPUT_NAME} has {len(level)} values; "
            f"shape {list(shape)} takes {expected}"
        )
    return level


def _logits(logits: npt.NDArray[np.float32], form: OutputForm) -> tuple[str, bytes]:
    rows, classes = logits.shape
    head = f'{{"name":"{OUTPUT_NAME}","datatype":"FP32","shape":[{rows},{classes}],'
    if form.binary:
        raw = logits.astype("<f4", copy=False).tobytes()
        return f'{head}"parameters":{{"binary_data_size":{len(raw)}}}}}', raw
    if not np.isfinite(logits).all():
        raise RequestError(
            422, "the model's answer is not finite, which JSON cannot carry; ask for binary_data"
        )
    # repr of a Python float that came from float32 would show digits it does not have. Row by row,
    # so that other threads get their turn while many are written.
    values = ",".join([",".join(map(str, row)) for row in logits])
    return f'{head}"data":[{values}]}}', b""


def _classification(
    logits: npt.NDArray[np.float32], form: OutputForm, spec: ModelSpec
) -> tuple[str, bytes]:
    order = np.argsort(-logits, axis=1, kind="stable")[:, : form.top_k]
    texts = [
        f"{logits[row, index]:.6f}:{index}:{spec.class_names[index]}"
        for row in range(len(logits))
        for index in order[row]
    ]
    head = f'{{"name":"{OUTPUT_NAME}","datatype":"BYTES","shape":[{len(logits)},{form.top_k}],'
    if not form.binary:
        return f'{head}"data":{json.dumps(texts)}}}', b""
    raw = b"".join(
        len(data).to_bytes(4, "little") + data for data in (text.encode() for text in texts)
    )
    return f'{head}"parameters":{{"binary_data_size":{len(raw)}}}}}', raw
