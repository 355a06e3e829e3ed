"""Winograd's F(4x4, 3x3): convolutions on CPUs that train with a quarter of the multiplications.

Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), section
4.3. Each 4x4 tile of the output is computed from a 6x6 tile of the input with 36 multiplications
for every pair of channels, not 144. As all steps are linear, so are both gradients: the adjoint of
each step, in reverse. PyTorch's own CPU kernels (oneDNN) do not have it for x86, and their gradient
of the weights is the slowest part of a step.
"""

import functools
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_OUT = 4
_IN = 6
_MIN_CHANNELS = 32
"""On one side, and twice as many on the other. With fewer, moving tiles about takes as long as the
multiplications that are saved."""
_MIN_SIDE = 3
"""Below, tiles hang over the edge by more than they save."""
_CHUNK_NUMBERS = 2**20
"""Of one transformed map; so that a chunk of images stays in a core's share of the cache."""

# Section 4.1 and 4.3; the points are 0, 1, -1, 2, -2 and infinity.
_INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_FILTER = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)


def use_winograd(net: nn.Module) -> int:
    """Let a network's 3x3 convolutions train by Winograd's algorithm, where that is faster.

    Weights and names stay the same, results up to rounding. Outside of training (in ``eval`` mode,
    without gradients, on a GPU, in another type than float32) nothing changes.

    Returns:
        Number of such convolutions.
    """
    convs: list[Any] = [
        module
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
        and _is_plain(module)
        and module.kernel_size == (3, 3)
        and module.padding in ((0, 0), (1, 1))
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and min(module.in_channels, module.out_channels) >= _MIN_CHANNELS
        and max(module.in_channels, module.out_channels) >= 2 * _MIN_CHANNELS
    ]
    for conv in convs:
        # A bound method, which a copy of the network binds to its own layer.
        conv.forward = MethodType(_forward, conv)
    return len(convs)


def winograd_conv2d(x: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    """``conv2d(x, weight, padding=padding)`` with 3x3 kernels.

    Args:
        x: ``[n, channels_in, height, width]``; the result has its memory format, of which
            channels_last is the faster.
        weight: ``[channels_out, channels_in, 3, 3]`` of the same type.
        padding: zeros on each side.
    """
    out: Tensor = _Winograd.apply(x, weight, padding)
    return out


def _forward(conv: Any, x: Tensor) -> Tensor:
    usable = (
        conv.training
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.ndim == 4
        and not torch.is_autocast_enabled("cpu")
        and _is_faster(conv, x)
    )
    if not usable:
        return nn.Conv2d.forward(conv, x)
    y = winograd_conv2d(x, conv.weight, conv.padding[0])
    return y if conv.bias is None else y + conv.bias.view(-1, 1, 1)


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether it convolves with its weight as it is; subclasses may do something to it first."""
    kind = type(conv)
    own = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    return own and "forward" not in vars(conv)


def _is_faster(conv: Any, x: Tensor) -> bool:
    grid = _Grid(x.shape, conv.padding[0])
    # With fewer tiles than channels, transforming the kernels takes longer than the rest.
    enough = grid.tiles(len(x)) >= max(conv.weight.shape[:2])
    return enough and min(grid.height, grid.width) >= _MIN_SIDE


class _Winograd(torch.autograd.Function):
    """Tensors within are channels-last; tiles come first, so that a step is one multiplication."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        n, channels, height, width = x.shape
        grid = _Grid(x.shape, padding)
        to_input, to_filter, to_output = _transforms(x.dtype)
        kernels = _both_sides(to_filter, weight.permute(2, 3, 1, 0)).view(-1, channels, len(weight))
        out = x.new_empty(n, grid.height, grid.width, len(weight))
        images = x.permute(0, 2, 3, 1)
        chunk = min(n, grid.chunk(max(channels, len(weight))))
        padded = x.new_zeros(chunk, _OUT * grid.rows + 2, _OUT * grid.columns + 2, channels)
        maps = []
        for begin in range(0, n, chunk):
            part = images[begin : begin + chunk]
            padded[: len(part), padding : padding + height, padding : padding + width] = part
            tiles = grid.overlapping(padded[: len(part)])
            maps.append(_both_sides(to_input, tiles).view(_IN * _IN, -1, channels))
            products = torch.bmm(maps[-1], kernels)
            grid.copy_to_map(_both_sides(to_output, products), out[begin : begin + chunk])
        ctx.grid, ctx.shape, ctx.chunk = grid, x.shape, chunk
        ctx.save_for_backward(kernels, *maps)
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return _channels_first(out, ctx.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        kernels, *maps = ctx.saved_tensors
        grid, (n, channels, height, width), chunk = ctx.grid, ctx.shape, ctx.chunk
        to_input, to_filter, to_output = _transforms(grad.dtype)
        images = grad.permute(0, 2, 3, 1)
        transposed = kernels.transpose(1, 2).contiguous()
        grad_kernels = torch.empty_like(kernels)
        grad_x = grad.new_empty(n, height, width, channels) if ctx.needs_input_grad[0] else None
        tiles = grad.new_zeros(_OUT, _OUT, grid.tiles(chunk), grad.shape[1])
        for begin, inputs in zip(range(0, n, chunk), maps, strict=True):
            part = images[begin : begin + chunk]
            own = tiles[:, :, : inputs.shape[1]]
            grid.copy_from_map(part, own)
            products = _both_sides(to_output.t(), own).view(_IN * _IN, -1, grad.shape[1])
            if ctx.needs_input_grad[1]:
                grad_kernels.baddbmm_(inputs.transpose(1, 2), products, beta=int(begin > 0))
            if grad_x is not None:
                spread = _both_sides(to_input.t(), torch.bmm(products, transposed))
                grad_x[begin : begin + chunk] = grid.overlap_add(spread, len(part), channels)
        if grad_x is not None:
            grad_x = _channels_first(grad_x, ctx.channels_last)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        grad_weight = _both_sides(to_filter.t(), grad_kernels)
        return grad_x, grad_weight.view(3, 3, channels, -1).permute(3, 2, 0, 1), None


class _Grid:
    """The tiles of a map that comes out, over whose lower and right edge they may hang."""

    def __init__(self, shape: Sequence[int], padding: int) -> None:
        """Of an input ``[n, channels, height, width]``, with so many zeros on each side."""
        self._padding, self._input_height, self._input_width = padding, shape[2], shape[3]
        self.height, self.width = shape[2] + 2 * padding - 2, shape[3] + 2 * padding - 2
        self.rows, self.columns = -(-self.height // _OUT), -(-self.width // _OUT)

    def tiles(self, n: int) -> int:
        """Of ``n`` images."""
        return n * self.rows * self.columns

    def chunk(self, channels: int) -> int:
        """How many images to transform at once."""
        return max(1, _CHUNK_NUMBERS // (_IN * _IN * self.tiles(1) * channels))

    def overlapping(self, padded: Tensor) -> Tensor:
        """6x6 tiles of ``[n, 4 rows + 2, 4 columns + 2, c]``: ``[6, 6, n, rows, columns, c]``."""
        n, _, _, channels = padded.shape
        by_image, by_row, by_column, _ = padded.stride()
        return padded.as_strided(
            (_IN, _IN, n, self.rows, self.columns, channels),
            (by_row, by_column, by_image, _OUT * by_row, _OUT * by_column, 1),
        )

    def overlap_add(self, tiles: Tensor, n: int, channels: int) -> Tensor:
        """The adjoint of padding and :meth:`overlapping`: as the input, but channels last."""
        tiles = tiles.view(_IN, _IN, n, self.rows, self.columns, channels)
        rows, columns = slice(self.rows), slice(self.columns)
        later = slice(1, None)
        padded = tiles.new_empty(n, self.rows + 1, _OUT, self.columns + 1, _OUT, channels)
        view = padded.permute(2, 4, 0, 1, 3, 5)
        over = _IN - _OUT
        view[:, :, :, self.rows :] = view[:, :, :, :, self.columns :] = 0
        view[:, :, :, rows, columns] = tiles[:_OUT, :_OUT]
        view[:over, :, :, later, columns] += tiles[_OUT:, :_OUT]
        view[:, :over, :, rows, later] += tiles[:_OUT, _OUT:]
        view[:over, :over, :, later, later] += tiles[_OUT:, _OUT:]
        whole = padded.view(n, _OUT * (self.rows + 1), _OUT * (self.columns + 1), channels)
        begin, height, width = self._padding, self._input_height, self._input_width
        return whole[:, begin : begin + height, begin : begin + width]

    def copy_to_map(self, tiles: Tensor, out: Tensor) -> None:
        """``[4, 4, n rows columns c]`` -> ``[n, height, width, c]``, without what hangs over."""
        for of_map, of_tiles in self._regions(tiles, out):
            of_map.copy_(of_tiles)

    def copy_from_map(self, images: Tensor, tiles: Tensor) -> None:
        """``[n, height, width, c]`` -> ``[4, 4, n rows columns, c]``; what hangs over is kept."""
        for of_map, of_tiles in self._regions(tiles, images):
            of_tiles.copy_(of_map)

    def _regions(self, tiles: Tensor, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same pixels of a map and of its tiles: those of whole tiles, and of cut ones."""
        n, _, _, channels = images.shape
        tiles = tiles.view(_OUT, _OUT, n, self.rows, self.columns, channels)
        for rows in _spans(self.height):
            for columns in _spans(self.width):
                of_map = images[:, rows.pixels, columns.pixels]
                of_map = of_map.unflatten(2, columns.shape).unflatten(1, rows.shape)
                own = tiles[: rows.shape[1], : columns.shape[1], :, rows.tiles, columns.tiles]
                yield of_map, own.permute(2, 3, 0, 4, 1, 5)


class _Span(NamedTuple):
    """Pixels of a side whose tiles are equally long."""

    pixels: slice
    tiles: slice
    shape: tuple[int, int]
    """Tiles, pixels of each."""


def _spans(side: int) -> Iterator[_Span]:
    """The whole tiles of a side, and the cut one at its end."""
    whole, rest = divmod(side, _OUT)
    cut = side - rest
    if whole:
        yield _Span(slice(cut), slice(whole), (whole, _OUT))
    if rest:
        yield _Span(slice(cut, side), slice(whole, whole + 1), (1, rest))


def _both_sides(side: Tensor, tiles: Tensor) -> Tensor:
    """``side @ tile @ side.T`` for every tile.

    Args:
        side: ``[r, c]``.
        tiles: ``[c, c, ...]``, or as many numbers in that order.

    Returns:
        ``[r, r, k]``.
    """
    rows, columns = side.shape
    half = (side @ tiles.reshape(columns, -1)).view(rows, columns, -1)
    return torch.matmul(side, half)


def _channels_first(x: Tensor, channels_last: bool) -> Tensor:
    """The same map by its usual order of axes; in memory too, unless that is channels_last."""
    view = x.permute(0, 3, 1, 2)
    return view if channels_last else view.contiguous()


@functools.cache
def _transforms(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of an input tile, of a kernel, and of what becomes an output tile: one side of each."""
    to_input, to_filter, to_output = (
        torch.tensor(rows, dtype=dtype) for rows in (_INPUT, _FILTER, _OUTPUT)
    )
    return to_input, to_filter, to_output
