"""Rows of bytes in a file that several processes write, and one then maps."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

_BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Scratch:
    """uint8 ``[rows, *row_shape]`` in a file.

    Written by ``pwrite`` and not through a mapping: on a full disk that is an error, where a
    mapping would end the process.
    """

    path: Path
    rows: int
    row_shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.row_shape))

    def create(self) -> "Scratch":
        """Make the file, of zeros.

        Raises:
            OSError: there is no room for it.
        """
        with self.path.open("wb") as file:
            size = self.rows * self.row_bytes
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        return self

    def write(self, first: int, values: npt.NDArray[np.uint8]) -> None:
        """Write ``values``, uint8 ``[n, *row_shape]``, from row ``first`` on."""
        data = np.ascontiguousarray(values).reshape(-1).data
        offset = first * self.row_bytes
        with self.path.open("r+b", buffering=0) as file:
            while len(data):
                written = os.pwrite(file.fileno(), data, offset)
                data, offset = data[written:], offset + written

    def map(self) -> npt.NDArray[np.uint8]:
        """The rows, read-only."""
        if self.rows == 0:
            return np.empty((0, *self.row_shape), np.uint8)
        return np.memmap(self.path, np.uint8, "r", shape=(self.rows, *self.row_shape))

    def compact(self, kept: npt.NDArray[np.bool_]) -> "Scratch":
        """Move the rows that are kept together, at the beginning of the file.

        Args:
            kept: bool ``[rows]``.
        """
        rows = self.map()
        wanted = np.flatnonzero(kept)
        # A row only ever moves towards the beginning, behind what is still to be read.
        step = max(1, _BLOCK_BYTES // max(1, self.row_bytes))
        for start in range(0, len(wanted), step):
            self.write(start, rows[wanted[start : start + step]])
        smaller = Scratch(self.path, len(wanted), self.row_shape)
        os.truncate(self.path, smaller.rows * self.row_bytes)
        return smaller
