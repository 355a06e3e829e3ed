"""A foreign ONNX graph as a network, and as the graph of a bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.external_data_helper
import onnx.helper
import onnx.numpy_helper
import torch
from torch import Tensor, nn

from cluster.bundle import INPUT_NAME, OUTPUT_NAME
from cluster.dataset import ChannelStatistics
from cluster.errors import BundleError, ConfigError
from cluster.runtime import OnnxRuntimeSession
from train.config import OnnxConfig, Outputs
from train.models.source import check_sha256, read_file

MIN_OPSET = 9
_OURS = "raybridge/"
_TYPES: dict[int, npt.DTypeLike] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.UINT8: np.uint8,
}


class OnnxNet(nn.Module):
    """Runs a foreign graph with ONNX Runtime, as it is; the reference for what is exported of it.

    Its tensors are listed as parameters, as ``PLACE:NAME`` with ``/`` for ``.``, which no attribute
    of a module is called; they cannot be trained.

    Args:
        config: names the file.
        shape: ``(channels, height, width)`` of an image.
        num_classes: outputs.

    Raises:
        ConfigError: the file is no graph from one batch of such images to one row of numbers each.
    """

    def __init__(self, config: OnnxConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        where = str(config.path)
        content = read_graph(config.path, config.sha256)
        self.graph = onnx.load_model_from_string(content)
        _check_opset(self.graph, where)
        self.input_name, self._dtype, self.batch = _find_input(self.graph.graph, shape, where)
        self.output_name = _find_output(self.graph.graph, num_classes, where)
        for place, tensor in enumerate(self.graph.graph.initializer):
            if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
                value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
                name = f"{place}:{tensor.name.replace('.', '/')}"
                self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        try:
            self._session = OnnxRuntimeSession(
                content, torch.get_num_threads(), self.input_name, self.output_name
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has its own kinds
            raise ConfigError(f"{where}: ONNX Runtime: {_one_line(error)}") from None

    @property
    def takes_bytes(self) -> bool:
        """Whether the graph normalises by itself, and takes uint8."""
        return self._dtype is np.uint8

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[n, channels, height, width]`` -> ``[n, classes]``, a fixed batch at a time."""
        images: Any = x.detach().cpu().numpy().astype(self._dtype)
        size = self.batch or max(1, len(images))
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padding = [(0, size - len(part)), (0, 0), (0, 0), (0, 0)]
            parts.append(self._session.run(np.pad(part, padding))[: len(part)])
        return torch.from_numpy(np.concatenate(parts))


def read_graph(path: Path, sha256: str | None = None) -> bytes:
    """Read a graph as one self-contained file, with the weights that it keeps in files beside it.

    Raises:
        ConfigError: it is missing, no graph, too large for one file, or not the one recorded.
    """
    content = read_file(path)
    try:
        model = onnx.load_model_from_string(content)
        if _is_split(model):
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
            content = model.SerializeToString()
    except Exception as error:  # noqa: BLE001 - protobuf and onnx have their own kinds
        raise ConfigError(f"{path} cannot be read as ONNX: {_one_line(error)}") from None
    if not model.graph.node:
        raise ConfigError(f"{path} cannot be read as ONNX: it holds no graph")
    check_sha256(path, content, sha256)
    return content


def to_bundle_graph(net: OnnxNet, normalization: ChannelStatistics, output: Outputs) -> bytes:
    """The graph from uint8 images to logits, with a dynamic batch.

    Raises:
        BundleError: the foreign graph gives other answers, or none, for another batch size than
            the one it was made with.
    """
    model = onnx.ModelProto()
    model.CopyFrom(net.graph)
    graph = model.graph
    for name in (INPUT_NAME, OUTPUT_NAME):
        _rename(graph, name, f"{_OURS}foreign_{name}")
    old_input, old_output = (
        f"{_OURS}foreign_{name}" if name in (INPUT_NAME, OUTPUT_NAME) else name
        for name in (net.input_name, net.output_name)
    )
    if net.batch is not None:
        _free_batch(graph, net.batch)
    given = next(entry for entry in graph.input if entry.name == old_input)
    wanted = next(entry for entry in graph.output if entry.name == old_output)
    shape = [len(normalization.mean), *_sizes(given)[2:]]
    nodes = list(graph.node)
    for field in ("node", "input", "output", "value_info"):
        graph.ClearField(field)
    graph.node.extend([*_front(graph, net, normalization, old_input), *nodes])
    graph.node.extend(_back(graph, output, old_output))
    helper = onnx.helper
    graph.input.append(
        helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.UINT8, ["batch", *shape])
    )
    classes = _sizes(wanted)[1:] or [None]
    graph.output.append(
        helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, ["batch", *classes])
    )
    content: bytes = model.SerializeToString()
    _try_batches(content, net)
    return content


def _front(
    graph: Any, net: OnnxNet, normalization: ChannelStatistics, old_input: str
) -> list[onnx.NodeProto]:
    make = onnx.helper.make_node
    if net.takes_bytes:
        return [make("Identity", [INPUT_NAME], [old_input])]
    for name, values in (("mean", normalization.mean), ("std", normalization.std)):
        bytewise = (np.array(values, np.float64) * 255).astype(np.float32).reshape(1, -1, 1, 1)
        graph.initializer.append(onnx.numpy_helper.from_array(bytewise, _OURS + name))
    return [
        make("Cast", [INPUT_NAME], [_OURS + "float"], to=onnx.TensorProto.FLOAT),
        make("Sub", [_OURS + "float", _OURS + "mean"], [_OURS + "centred"]),
        make("Div", [_OURS + "centred", _OURS + "std"], [old_input]),
    ]


def _back(graph: Any, output: Outputs, old_output: str) -> list[onnx.NodeProto]:
    make = onnx.helper.make_node
    if output == "logits":
        return [make("Identity", [old_output], [OUTPUT_NAME])]
    tiny = np.array(np.finfo(np.float32).tiny)
    graph.initializer.append(onnx.numpy_helper.from_array(tiny, _OURS + "tiny"))
    return [
        make("Max", [old_output, _OURS + "tiny"], [_OURS + "positive"]),
        make("Log", [_OURS + "positive"], [OUTPUT_NAME]),
    ]


def _free_batch(graph: Any, batch: int) -> None:
    """Let constant shapes that begin with the fixed batch keep whatever batch comes in."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        values = [one.t for one in node.attribute if one.name == "value"]
        if node.op_type == "Constant" and values:
            constants[node.output[0]] = values[0]
    reshapes = [node for node in graph.node if node.op_type == "Reshape"]
    for name in {node.input[1] for node in reshapes} & constants.keys():
        sizes = onnx.numpy_helper.to_array(constants[name]).copy()
        if sizes.ndim == 1 and len(sizes) and sizes[0] == batch and 0 not in sizes:
            sizes[0] = 0  # "As in the input", unless the node says that it is a size.
            constants[name].CopyFrom(onnx.numpy_helper.from_array(sizes, constants[name].name))
            for node in reshapes:
                if node.input[1] == name:
                    kept = [one for one in node.attribute if one.name != "allowzero"]
                    node.ClearField("attribute")
                    node.attribute.extend(kept)


def _try_batches(content: bytes, net: OnnxNet) -> None:
    shape = onnx.load_model_from_string(content).graph.input[0]
    sizes = [size or 1 for size in _sizes(shape)[1:]]
    images = np.random.default_rng(0).integers(0, 256, (3, *sizes), dtype=np.uint8)
    try:
        session = OnnxRuntimeSession(content, torch.get_num_threads())
        batch = session.run(images)
        single = np.concatenate([session.run(images[i : i + 1]) for i in range(3)])
        if batch.shape != single.shape or not np.allclose(batch, single, rtol=1e-3, atol=1e-3):
            raise ValueError("an image's answer depends on the others of its batch")
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has its own kinds
        fixed = f" (its own is fixed at {net.batch})" if net.batch else ""
        raise BundleError(
            f"the ONNX graph does not take batches of any size{fixed}: {_one_line(error)}; export "
            "it again with a dynamic batch"
        ) from None


def _rename(graph: Any, old: str, new: str) -> None:
    """Rename a value everywhere, in graphs within the graph too."""
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if entry.name == old:
            entry.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _rename(inner, old, new)


def _find_input(
    graph: Any, shape: tuple[int, int, int], where: str
) -> tuple[str, npt.DTypeLike, int | None]:
    """Name and type of the input, and its batch if that is fixed."""
    initial = {tensor.name for tensor in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in initial]
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs) or "none"
        raise ConfigError(f"{where} has the inputs {names}; one batch of images is taken")
    (entry,) = inputs
    kind = entry.type.tensor_type.elem_type
    if kind not in _TYPES:
        name = onnx.TensorProto.DataType.Name(kind)
        raise ConfigError(f"{where}: input {entry.name} is {name}; FLOAT and UINT8 are taken")
    sizes = _sizes(entry)
    fits = len(sizes) == 4 and all(
        size in (None, own) for size, own in zip(sizes[1:], shape, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{where}: input {entry.name} is {_show(sizes)}; the data set's images are "
            f"[batch, {', '.join(map(str, shape))}] (channels before height and width)"
        )
    return entry.name, _TYPES[kind], sizes[0]


def _find_output(graph: Any, num_classes: int, where: str) -> str:
    entries = list(graph.output)
    fitting = [e for e in entries if len(_sizes(e)) == 2 and _sizes(e)[1] in (None, num_classes)]
    # Without a recorded shape only running it tells, and that is done next.
    fitting = fitting or [e for e in entries if not e.type.tensor_type.HasField("shape")]
    if len(fitting) != 1 or fitting[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        listed = ", ".join(f"{e.name} {_show(_sizes(e))}" for e in entries)
        raise ConfigError(
            f"{where} has the outputs {listed}; one of type FLOAT and shape [batch, {num_classes}] "
            "is needed, one number for each class of the data set"
        )
    name: str = fitting[0].name
    return name


def _check_opset(model: Any, where: str) -> None:
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    opset = max(versions, default=0)
    if opset < MIN_OPSET:
        raise ConfigError(
            f"{where} is of ONNX opset {opset}; {MIN_OPSET} or later is taken: "
            "onnx.version_converter.convert_version(model, 17)"
        )


def _sizes(entry: Any) -> list[int | None]:
    return [one.dim_value or None for one in entry.type.tensor_type.shape.dim]


def _show(sizes: list[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in sizes)}]"


def _is_split(model: Any) -> bool:
    return any(
        tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
