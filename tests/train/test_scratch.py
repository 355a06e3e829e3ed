"""Rows in a file."""

from pathlib import Path

import numpy as np
import pytest

from train.data.scratch import Scratch


@pytest.mark.parametrize("block", [1, 50, 10_000])
def test_rows_that_are_not_kept_leave_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("train.data.scratch._BLOCK_BYTES", block)
    rows = np.random.default_rng(0).integers(0, 256, (100, 3, 5), dtype=np.uint8)
    scratch = Scratch(tmp_path / "rows", 100, (3, 5)).create()
    scratch.write(60, rows[60:])
    scratch.write(0, rows[:60])
    assert np.array_equal(scratch.map(), rows)
    kept = np.random.default_rng(1).random(100) < 0.6
    smaller = scratch.compact(kept)
    assert np.array_equal(smaller.map(), rows[kept])
    assert (tmp_path / "rows").stat().st_size == kept.sum() * 15


def test_no_rows(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "rows", 2, (4,)).create()
    assert scratch.compact(np.zeros(2, bool)).map().shape == (0, 4)
