"""Dynamic batching: what runs together, what fails alone, what is answered at the end."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serve.batcher import Batcher, ClosedError, Images, Logits


class Gate:
    """A forward pass that waits until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self, images: Images) -> Logits:
        self.batches.append(images[:, 0].tolist())
        self.started.set()
        assert self.go.wait(10)
        return images.astype(np.float32) * 2


def _rows(*values: int) -> Images:
    return np.array([[value] for value in values], np.uint8)


def _run(main: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), 20))


def _batcher(run: Callable[[Images], Logits], **options: Any) -> Batcher:
    return Batcher(run, max_batch_size=options.pop("max_batch_size", 4), **options)


async def _started(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.started.wait, 10)


def test_what_arrives_while_busy_runs_as_one_batch() -> None:
    gate = Gate()
    sizes: list[int] = []

    async def main() -> list[Logits]:
        batcher = _batcher(gate, on_batch=sizes.append)
        first = batcher.submit(_rows(1), 1)
        await _started(gate)
        rest = [batcher.submit(_rows(value), 1) for value in (2, 3, 4)]
        gate.go.set()
        return await asyncio.gather(first, *rest)

    answers = _run(main)
    assert gate.batches == [[1], [2, 3, 4]]
    assert sizes == [1, 3]
    assert [answer.tolist() for answer in answers] == [[[2]], [[4]], [[6]], [[8]]]


def test_a_batch_is_never_larger_than_allowed() -> None:
    gate = Gate()

    async def main() -> list[Logits]:
        batcher = _batcher(gate, max_batch_size=3)
        first = batcher.submit(_rows(0), 1)
        await _started(gate)
        rest = [
            batcher.submit(_rows(1, 2), 2),
            batcher.submit(_rows(3, 4), 2),
            batcher.submit(_rows(5), 1),
            batcher.submit(_rows(*range(10, 17)), 7),
        ]
        gate.go.set()
        return await asyncio.gather(first, *rest)

    answers = _run(main)
    assert gate.batches == [[0], [1, 2], [3, 4, 5], [10, 11, 12], [13, 14, 15], [16]]
    assert answers[-1].ravel().tolist() == [20, 22, 24, 26, 28, 30, 32]


def test_a_huge_request_lets_others_through_between_its_slices() -> None:
    gate = Gate()
    small_is_answered = threading.Event()

    def run(images: Images) -> Logits:
        assert images[0, 0] != 2 or small_is_answered.wait(10)
        return gate(images)

    async def main() -> tuple[Logits, Logits]:
        batcher = _batcher(run, max_batch_size=2)
        huge = batcher.submit(_rows(*range(101)), 101)
        await _started(gate)
        small = batcher.submit(_rows(200), 1)
        gate.go.set()
        answer = await small
        small_is_answered.set()
        batcher.close()
        return await huge, answer

    huge, small = _run(main)
    assert gate.batches[:3] == [[0, 1], [200], [2, 3]]
    assert huge.ravel().tolist() == [2 * value for value in range(101)]
    assert small.tolist() == [[400]]


def test_a_huge_request_that_fails_or_is_cancelled_is_not_gone_on_with() -> None:
    gate = Gate()
    gate.go.set()

    def run(images: Images) -> Logits:
        if images[0, 0] == 4:
            raise RuntimeError("engine")
        return gate(images)

    async def main() -> None:
        batcher = _batcher(run, max_batch_size=2)
        with pytest.raises(RuntimeError, match="engine"):
            await batcher.submit(_rows(*range(9)), 9)
        assert gate.batches == [[0, 1], [2, 3]]
        gate.go.clear()
        gate.started.clear()
        cancelled = batcher.submit(_rows(*range(10, 19)), 9)
        await _started(gate)
        cancelled.cancel()
        gate.go.set()
        await batcher.submit(_rows(30), 1)
        assert gate.batches[2:] == [[10, 11], [30]]

    _run(main)


def test_a_lone_request_waits_only_if_told_to() -> None:
    gate = Gate()
    gate.go.set()

    async def main() -> None:
        batcher = _batcher(gate, max_batch_size=2, wait_s=5.0)
        first = batcher.submit(_rows(1), 1)
        await asyncio.sleep(0.05)
        assert gate.batches == []
        second = batcher.submit(_rows(2), 1)
        await asyncio.gather(first, second)

    _run(main)
    assert gate.batches == [[1, 2]]


def test_an_input_that_cannot_be_made_fails_alone() -> None:
    gate = Gate()

    def broken() -> Images:
        raise ValueError("no image")

    async def main() -> list[Any]:
        batcher = _batcher(gate)
        first = batcher.submit(_rows(1), 1)
        await _started(gate)
        rest = [
            batcher.submit(lambda: _rows(2), 1),
            batcher.submit(broken, 1),
            batcher.submit(_rows(3), 1),
        ]
        gate.go.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    answers = _run(main)
    assert gate.batches == [[1], [2, 3]]
    assert isinstance(answers[2], ValueError)
    assert answers[3].tolist() == [[6]]


def test_a_failed_forward_pass_fails_its_batch_and_the_next_one_runs() -> None:
    calls = []

    def run(images: Images) -> Logits:
        calls.append(len(images))
        if len(calls) == 1:
            raise RuntimeError("engine")
        return images.astype(np.float32)

    async def main() -> None:
        batcher = _batcher(run)
        with pytest.raises(RuntimeError, match="engine"):
            await batcher.submit(_rows(1), 1)
        assert (await batcher.submit(_rows(2), 1)).tolist() == [[2]]

    _run(main)


def test_a_cancelled_request_is_not_computed() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = _batcher(gate)
        first = batcher.submit(_rows(1), 1)
        await _started(gate)
        batcher.submit(_rows(2), 1).cancel()
        last = batcher.submit(_rows(3), 1)
        gate.go.set()
        await asyncio.gather(first, last)

    _run(main)
    assert gate.batches == [[1], [3]]


def test_closing_answers_what_was_submitted_and_takes_no_more() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = _batcher(gate, max_batch_size=2)
        futures = [batcher.submit(_rows(1), 1)]
        await _started(gate)
        futures += [batcher.submit(_rows(value, value), 2) for value in (2, 3)]
        futures.append(batcher.submit(_rows(4), 1))
        batcher.close()
        with pytest.raises(ClosedError):
            batcher.submit(_rows(5), 1)
        gate.go.set()
        await asyncio.gather(*futures)
        assert await asyncio.to_thread(batcher.join, 10)

    _run(main)
    assert gate.batches == [[1], [2, 2], [3, 3], [4]]
