"""What a person sees of a run, on a terminal and in a file."""

import io

import pytest
from rich.console import Console

from cluster.cli import Output
from cluster.events import Event
from train.progress import ProgressView, format_eta

WORKER = {"host": "here", "pid": 1}


def view(*, terminal: bool = False) -> tuple[ProgressView, io.StringIO]:
    output = Output(as_json=False)
    written = io.StringIO()
    output.console = Console(
        file=written, force_terminal=terminal, width=160, highlight=False, soft_wrap=True
    )
    return ProgressView(output), written


def start(time: float, step: int = 0, workers: int = 2) -> Event:
    return {
        "kind": "start",
        "time": time,
        "step": step,
        "total_steps": 400,
        "workers": [WORKER] * workers,
    }


def progress(time: float, step: int) -> Event:
    return {
        "kind": "progress",
        "time": time,
        "epoch": 1,
        "step": step,
        "total_steps": 400,
        "loss": 1.25,
        "accuracy": 0.5,
        "lr": 0.01,
        "images_per_s": 4321.0,
        "eta_s": 187.2,
    }


def epoch(time: float, number: int, seconds: float = 20.0) -> Event:
    return {
        "kind": "epoch",
        "time": time,
        "epoch": number,
        "step": 100 * number,
        "train_loss": 1.0,
        "train_accuracy": 0.75,
        "val_loss": 0.5,
        "val_accuracy": 0.875,
        "lr": 0.01,
        "images_per_s": 4000.0,
        "grad_norm": 1.0,
        "seconds": seconds,
    }


def told(events: list[Event]) -> list[str]:
    shown, written = view()
    with shown:
        for event in events:
            shown.on_event(event)
    return written.getvalue().splitlines()


def test_every_epoch_has_a_line_with_the_time_that_is_left() -> None:
    lines = told(
        [
            {"kind": "run", "time": 0.0, "name": "one"},
            start(1.0),
            epoch(21.0, 1),
            epoch(91.0, 2, 70.0),
            epoch(111.0, 3),
            epoch(131.0, 4),
        ]
    )
    assert lines[0] == "run one"
    assert lines[1] == (
        "epoch   1  train loss 1.0000 accuracy 0.7500  val loss 0.5000 accuracy 0.8750  "
        "4,000 images/s  ETA 1:00"
    )
    # The median, so that one epoch beside other work does not count for all.
    assert [line.rpartition("  ")[2] for line in lines[2:]] == [
        "ETA 1:30",
        "ETA 0:20",
        "4,000 images/s",
    ]


def test_a_file_has_a_line_of_a_long_epoch_every_half_minute() -> None:
    events = [{"kind": "run", "time": 0.0, "name": "one"}, start(1.0)]
    events += [progress(float(second), second) for second in range(1, 100)]
    lines = told(events)
    assert [line for line in lines if "step" in line] == [
        f"epoch   1  step {step} of 400  loss 1.2500  accuracy 0.5000  4,321 images/s  ETA 3:07"
        for step in (30, 60, 90)
    ]


def test_on_a_terminal_the_bar_takes_the_place_of_these_lines() -> None:
    shown, written = view(terminal=True)
    with shown:
        shown.on_event(start(0.0))
        for second in range(1, 100):
            shown.on_event(progress(float(second), 4 * second))
    text = written.getvalue()
    assert "step 4 of" not in text
    for part in ("epoch 1", "99 %", "loss 1.2500", "accuracy 0.5000", "4,321 images/s", "ETA 3:07"):
        assert part in text


def test_notes_are_told_once() -> None:
    note = {"kind": "note", "time": 0.0, "text": "hardware.tf32 has [no] effect"}
    assert told([note, start(1.0), note, start(9.0, 10)]) == [
        "note: hardware.tf32 has [no] effect",
        "a worker died; its place was filled: going on from step 10",
    ]


@pytest.mark.parametrize(
    ("workers", "line"),
    [
        ((2, 2), "a worker died; its place was filled: going on from step 10"),
        ((4, 1), "a worker died, and no other is free: going on with 1 instead of 4 from step 10"),
        ((1, 3), "more CPUs or GPUs are free: going on with 3 workers instead of 1 from step 10"),
    ],
)
def test_workers_that_begin_again_are_told(workers: tuple[int, int], line: str) -> None:
    assert told([start(0.0, 0, workers[0]), start(9.0, 10, workers[1])]) == [line]


def test_a_resumed_run_says_where_it_goes_on() -> None:
    assert told([start(0.0, 120)]) == ["going on from step 120 of 400"]


def test_who_stops_a_run_is_told_how_to_go_on() -> None:
    shown, written = view()
    shown.on_event({"kind": "run", "time": 0.0, "name": "one"})
    with pytest.raises(KeyboardInterrupt), shown:
        raise KeyboardInterrupt
    assert "stopped; go on with: python -m train resume one" in written.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (187.2, "3:07"), (3787, "1:03:07")]
)
def test_times_are_read_as_clocks_show_them(seconds: float, text: str) -> None:
    assert format_eta(seconds) == text
