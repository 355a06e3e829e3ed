"""The Open Inference Protocol: what is read, what is refused, what is answered."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serve.protocol import (
    InferRequest,
    ModelSpec,
    OutputForm,
    RequestError,
    encode_infer,
    model_metadata,
    parse_infer,
)

SPEC = ModelSpec("net", "3", (1, 2, 3), ("ant", "bee", "cat"))
IMAGE = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [1, 2, 3, 4, 5, 6]}
LOGITS = np.array([[0.5, -1.25, 2.0]], np.float32)
BINARY_IMAGE = {
    "name": "images",
    "datatype": "UINT8",
    "shape": [2, 1, 2, 3],
    "parameters": {"binary_data_size": 12},
}


def _parse(value: Any) -> InferRequest:
    return parse_infer(json.dumps(value).encode(), None, SPEC)


def _parse_binary(header: Any, raw: bytes) -> InferRequest:
    start = json.dumps(header).encode()
    return parse_infer(start + raw, str(len(start)).encode(), SPEC)


def test_flat_and_nested_data_are_the_same() -> None:
    flat = _parse({"inputs": [IMAGE]})
    nested = _parse({"inputs": [{**IMAGE, "data": [[[[1, 2, 3], [4, 5, 6]]]]}]})
    assert flat.images.shape == (1, 1, 2, 3)
    assert flat.images.dtype == np.uint8
    assert np.array_equal(flat.images, nested.images)
    assert flat.form == OutputForm(binary=False, top_k=0)


def test_binary_tensors_follow_the_header() -> None:
    request = _parse_binary({"id": "x", "inputs": [BINARY_IMAGE]}, bytes(range(12)))
    assert request.request_id == "x"
    assert request.images.ravel().tolist() == list(range(12))
    assert not request.form.binary


def test_a_header_of_length_zero_means_raw_images() -> None:
    request = parse_infer(bytes(range(12)), b"0", SPEC)
    assert request.images.shape == (2, 1, 2, 3)
    assert request.form.binary


def test_json_data_may_follow_a_header_length() -> None:
    assert _parse_binary({"inputs": [IMAGE]}, b"").images.ravel().tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("request_level", "output_level", "binary"),
    [(None, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_the_output_decides_over_the_request(
    request_level: bool | None, output_level: bool | None, binary: bool
) -> None:
    value: dict[str, Any] = {"inputs": [IMAGE]}
    if request_level is not None:
        value["parameters"] = {"binary_data_output": request_level}
    if output_level is not None:
        value["outputs"] = [{"name": "logits", "parameters": {"binary_data": output_level}}]
    assert _parse(value).form.binary is binary


def test_fields_that_others_add_are_passed_over() -> None:
    value = {"model_name": "net", "inputs": [IMAGE], "parameters": {"priority": 1}, "x": [1]}
    assert len(_parse(value).images) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [1, 1, 3, 2]}, "expected [-1, 1, 2, 3]"),
        ({"shape": [1, 6]}, "expected [-1, 1, 2, 3]"),
        ({"shape": [0, 1, 2, 3]}, "one or more"),
        ({"shape": [-1, 1, 2, 3]}, "one or more"),
        ({"shape": [2**4, 2**60 + 2]}, "expected [-1, 1, 2, 3]"),
        ({"shape": [2**62, 1, 2, 3]}, "takes"),
        ({"shape": [10**4000, 1, 2, 3]}, "a dimension above"),
        ({"shape": [True, 1, 2, 3]}, "list of integers"),
        ({"shape": [1.0, 1, 2, 3]}, "list of integers"),
        ({"shape": "1123"}, "list of integers"),
        ({"shape": None}, "list of integers"),
        ({"datatype": "FP32"}, "expected 'UINT8'"),
        ({"datatype": None}, "expected 'UINT8'"),
        ({"datatype": ["UINT8"]}, "expected 'UINT8'"),
        ({"name": "image"}, "unknown input"),
        ({"name": None}, "unknown input"),
        ({"name": "a" * 10_000}, "unknown input"),
        ({"data": [1, 2, 3, 4, 5]}, "has 5 values"),
        ({"data": []}, "has 0 values"),
        ({"data": [[1, 2, 3], [4, 5, 6]]}, "has 2 images"),
        ({"data": [[[[1, 2, 3], [4, 5]]]]}, "not nested as its shape"),
        ({"data": [[[[1, 2, 3], 4]]]}, "not nested as its shape"),
        ({"data": [1, 2, 3, 4, 5, 256]}, "integers from 0 to 255"),
        ({"data": [1, 2, 3, 4, 5, -1]}, "integers from 0 to 255"),
        ({"data": [1, 2, 3, 4, 5, 6.5]}, "integers from 0 to 255"),
        ({"data": [1, 2, 3, 4, 5, True]}, "integers from 0 to 255"),
        ({"data": [1, 2, 3, 4, 5, None]}, "integers from 0 to 255"),
        ({"data": [1, 2, 3, 4, 5, "6"]}, "integers from 0 to 255"),
        ({"data": [1, 2, 3, 4, 5, 10**400]}, "integers from 0 to 255"),
        ({"data": "123456"}, "must be a list"),
        ({"data": {"0": 1}}, "must be a list"),
        ({"data": None}, "needs data or"),
        ({"parameters": {"binary_data_size": 6}}, "not both"),
        ({"parameters": 3}, "must be an object"),
    ],
)
def test_a_wrong_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        _parse({"inputs": [{**IMAGE, **change}]})
    assert caught.value.status == 400
    assert message in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "no inputs"),
        ({"inputs": []}, "no inputs"),
        ({"inputs": "images"}, "list of objects"),
        ({"inputs": [1]}, "list of objects"),
        ({"inputs": [IMAGE, IMAGE]}, "given 2 times"),
        ({"inputs": [IMAGE], "id": 7}, "id must be a string"),
        ({"inputs": [IMAGE], "id": "x" * 257}, "id must be a string"),
        ({"inputs": [IMAGE], "parameters": []}, "must be an object"),
        ({"inputs": [IMAGE], "parameters": {"binary_data_output": 1}}, "true or false"),
        ({"inputs": [IMAGE], "outputs": {"name": "logits"}}, "list of objects"),
        ({"inputs": [IMAGE], "outputs": [{"name": "probs"}]}, "unknown output"),
        ({"inputs": [IMAGE], "outputs": [{}]}, "unknown output"),
        ({"inputs": [IMAGE], "outputs": [{"name": "logits"}] * 2}, "given 2 times"),
        (
            {
                "inputs": [IMAGE],
                "outputs": [{"name": "logits", "parameters": {"classification": -1}}],
            },
            "count of classes",
        ),
        ({"inputs": [BINARY_IMAGE]}, "no Inference-Header-Content-Length"),
        ([], "JSON object"),
        ("x", "JSON object"),
        (None, "JSON object"),
    ],
)
def test_a_wrong_request_is_refused(value: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        _parse(value)
    assert caught.value.status == 400
    assert message in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"inputs": NaN}',
        b'{"inputs": -Infinity}',
        b"[" * 250_000,
        b'{"inputs":' * 100_000,
        b"\x00" * 10,
        b"1" * 5000,
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_infer(body, None, SPEC)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "length",
    [b"", b"-1", b"+1", b"1.0", b"0x1", b" 1", b"99999999999", b"9" * 40, "\u0663".encode()],
)
def test_a_senseless_header_length_is_refused(length: bytes) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length") as caught:
        parse_infer(b"{}", length, SPEC)
    assert caught.value.status == 400


@pytest.mark.parametrize("size", [11, 13, 0, -12, 2**63, 12.0, True, "12"])
def test_a_wrong_binary_size_is_refused(size: Any) -> None:
    tensor = {**BINARY_IMAGE, "parameters": {"binary_data_size": size}}
    with pytest.raises(RequestError, match="binary_data_size"):
        _parse_binary({"inputs": [tensor]}, bytes(12))


@pytest.mark.parametrize("raw", [b"", bytes(11), bytes(13)])
def test_missing_or_surplus_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match="expected 12"):
        _parse_binary({"inputs": [BINARY_IMAGE]}, raw)
    with pytest.raises(RequestError):
        _parse_binary({"inputs": [IMAGE]}, raw or b"x")


@pytest.mark.parametrize("size", [0, 1, 5, 7])
def test_raw_bodies_must_hold_whole_images(size: int) -> None:
    with pytest.raises(RequestError, match="raw body"):
        parse_infer(bytes(size), b"0", SPEC)


def _request(
    *, binary: bool = False, top_k: int = 0, request_id: str | None = None
) -> InferRequest:
    images = np.zeros((1, 1, 2, 3), np.uint8)
    return InferRequest(request_id, images, OutputForm(binary, top_k))


def test_a_json_answer() -> None:
    body, headers = encode_infer(_request(request_id='q"1'), LOGITS, SPEC)
    assert dict(headers) == {b"content-type": b"application/json"}
    assert json.loads(body) == {
        "model_name": "net",
        "model_version": "3",
        "id": 'q"1',
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [1, 3], "data": [0.5, -1.25, 2.0]}
        ],
    }


def test_a_binary_answer() -> None:
    body, headers = encode_infer(_request(binary=True), LOGITS, SPEC)
    length = int(dict(headers)[b"inference-header-content-length"])
    head = json.loads(body[:length])
    assert "id" not in head
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert np.array_equal(np.frombuffer(body[length:], "<f4"), LOGITS[0])


@pytest.mark.parametrize("binary", [True, False])
def test_the_classification_extension(binary: bool) -> None:
    form = _request(binary=binary, top_k=2)
    body, headers = encode_infer(form, LOGITS, SPEC)
    if binary:
        length = int(dict(headers)[b"inference-header-content-length"])
        output, raw = json.loads(body[:length])["outputs"][0], body[length:]
        values = []
        while raw:
            size = int.from_bytes(raw[:4], "little")
            values.append(raw[4 : 4 + size].decode())
            raw = raw[4 + size :]
    else:
        output = json.loads(body)["outputs"][0]
        values = output["data"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    assert values == ["2.000000:2:cat", "0.500000:0:ant"]


def test_more_classes_than_there_are_means_all() -> None:
    value = {
        "inputs": [IMAGE],
        "outputs": [{"name": "logits", "parameters": {"classification": 99}}],
    }
    assert _parse(value).form.top_k == 3


def test_json_never_carries_what_is_no_number() -> None:
    logits = np.array([[1.0, math.nan, math.inf]], np.float32)
    with pytest.raises(RequestError) as caught:
        encode_infer(_request(), logits, SPEC)
    assert caught.value.status == 422
    assert encode_infer(_request(binary=True), logits, SPEC)


def test_metadata_describes_the_tensors() -> None:
    values = json.loads(model_metadata(SPEC, ["3"], {"more": 1}))
    assert values["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 1, 2, 3]}]
    assert values["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert values["properties"] == {"class_names": ["ant", "bee", "cat"], "more": 1}


IMAGES = st.integers(1, 4).flatmap(lambda n: hnp.arrays(np.uint8, (n, 1, 2, 3)))
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(IMAGES, st.booleans(), st.one_of(st.none(), st.text(max_size=20)))
def test_whatever_is_sent_arrives(images: Any, nested: bool, request_id: str | None) -> None:
    data = images.tolist() if nested else images.ravel().tolist()
    tensor = {**IMAGE, "shape": list(images.shape), "data": data}
    as_json = _parse({"inputs": [tensor], "id": request_id})
    raw = images.tobytes()
    size = {"binary_data_size": len(raw)}
    tensor = {**IMAGE, "shape": list(images.shape), "parameters": size}
    del tensor["data"]
    as_binary = _parse_binary({"inputs": [tensor], "id": request_id}, raw)
    for request in (as_json, as_binary, parse_infer(raw, b"0", SPEC)):
        assert np.array_equal(request.images, images)
    assert as_json.request_id == as_binary.request_id == request_id


@given(hnp.arrays(np.float32, (2, 3), elements=FINITE))
def test_json_answers_lose_no_digit(logits: Any) -> None:
    body, _ = encode_infer(_request(), logits, SPEC)
    (output,) = json.loads(body)["outputs"]
    assert np.array_equal(np.array(output["data"], np.float32).reshape(2, 3), logits)


def _refusal(body: bytes, length: bytes | None) -> RequestError | None:
    try:
        parse_infer(body, length, SPEC)
    except RequestError as error:
        return error
    return None


@given(st.binary(max_size=200), st.one_of(st.none(), st.binary(max_size=6)))
def test_noise_is_read_or_refused_and_nothing_else(body: bytes, length: bytes | None) -> None:
    refusal = _refusal(body, length)
    assert refusal is None or refusal.status == 400


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["inputs", "outputs", "name", "shape", "data", "parameters", "id"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    refusal = _refusal(json.dumps(value).encode(), None)
    assert refusal is None or refusal.status == 400
