"""Inference sessions over a bundle. Training checks parity with the very code that serves."""

import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from cluster.bundle import INPUT_NAME, MODEL_FILE, OUTPUT_NAME, Bundle
from cluster.errors import BundleError, ConfigError

Engine = Literal["onnxruntime", "openvino"]


class Session(Protocol):
    """A loaded graph. ``run`` releases the GIL while it computes and may be called from threads."""

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 ``[n, channels, height, width]`` -> float32 logits ``[n, classes]``."""


class OnnxRuntimeSession:
    """ONNX Runtime on the CPU; of a foreign graph, input and output may have other names."""

    def __init__(
        self,
        model: bytes,
        num_threads: int,
        input_name: str = INPUT_NAME,
        output_name: str = OUTPUT_NAME,
    ) -> None:
        self._names = input_name, output_name
        # Unless told otherwise before it is imported, it writes an identifier into the home folder
        # and reports to its makers.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        # Spinning threads would take the cores that HTTP and other replicas need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # What is wrong is raised as well.
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        input_name, output_name = self._names
        logits: npt.NDArray[np.float32] = self._session.run([output_name], {input_name: images})[0]
        return logits


class OpenVinoSession:
    """OpenVINO on the CPU; needs the extra ``raybridge[openvino]``."""

    def __init__(self, model: bytes, num_threads: int) -> None:
        try:
            import openvino
        except ImportError:
            raise ConfigError(
                "engine openvino is not installed; pip install 'raybridge[openvino]'"
            ) from None
        core = openvino.Core()
        self._compiled = core.compile_model(
            core.read_model(model),
            "CPU",
            # bf16 would be chosen by itself on some CPUs and break parity.
            {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"},
        )

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        # One infer request a call: a shared one would not be safe between threads.
        request = self._compiled.create_infer_request()
        logits: npt.NDArray[np.float32] = request.infer({INPUT_NAME: images})[OUTPUT_NAME]
        return logits


SESSIONS: dict[Engine, Callable[[bytes, int], Session]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
}


def open_session(
    bundle: Bundle, *, engine: Engine = "onnxruntime", num_threads: int = 1
) -> Session:
    """Load the bundle's graph and replay its goldens.

    Raises:
        BundleError: the graph reads other files, does not load, or gives other answers than
            PyTorch gave when the bundle was made.
    """
    model = bundle.model_bytes
    _refuse_external_data(bundle, model)
    try:
        session = SESSIONS[engine](model, num_threads)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - engines raise their own kinds on a bad graph
        raise BundleError(f"{bundle.path}: {MODEL_FILE} does not load: {error}") from None
    replay_golden(bundle, session)
    return session


def replay_golden(bundle: Bundle, session: Session) -> float:
    """Compare a session's answers with the bundle's goldens, one by one and as a batch.

    Returns:
        The largest difference of a logit.

    Raises:
        BundleError: a label differs, or a logit by more than the manifest allows.
    """
    golden = bundle.golden()
    batch = session.run(golden.images)
    single = session.run(golden.images[:1])
    largest = max(
        float(np.abs(batch - golden.logits).max()),
        float(np.abs(single - golden.logits[:1]).max()),
    )
    same_labels = bool((batch.argmax(1) == golden.logits.argmax(1)).all())
    allowed = bundle.manifest.golden_tolerance
    if not same_labels or not largest <= allowed:
        raise BundleError(
            f"{bundle.path}: the goldens differ by {largest:.3g} (allowed {allowed:.3g}, labels "
            f"{'equal' if same_labels else 'differ'}): this engine does not give the answers "
            "that the model was checked with"
        )
    return largest


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: npt.NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def _refuse_external_data(bundle: Bundle, model: bytes) -> None:
    try:
        tensors = list(_all_tensors(onnx.load_model_from_string(model).graph))
    except Exception as error:  # noqa: BLE001 - protobuf raises its own kinds
        raise BundleError(f"{bundle.path}: {MODEL_FILE} is not ONNX: {error}") from None
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise BundleError(
                f"{bundle.path}: {MODEL_FILE} reads tensor {tensor.name} from another file"
            )


def _all_tensors(graph: Any) -> Iterator[Any]:
    """Tensors of a graph: its initializers, its constants, and those of graphs within it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _all_tensors(inner)
