"""What a person sees of a run: a live bar on a terminal, and a line an epoch everywhere."""

import statistics
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cluster.cli import Output
from cluster.events import Event

LINE_EVERY_S = 30.0
"""Where there is no bar: at least so often something is said within a long epoch."""


class ProgressView:
    """Shows a run's events. Times are those of the events.

    Args:
        output: where to; a bar is drawn if it is a terminal.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live = output.console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[figures]}"),
            console=output.console,
            transient=True,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._run: str | None = None
        self._notes: set[str] = set()
        self._workers: int | None = None
        self._total_steps = 0
        self._epoch_seconds: list[float] = []
        self._said_at = 0.0

    def __enter__(self) -> "ProgressView":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt and self._run is not None:
            self._output.say(f"stopped; go on with: python -m train resume {self._run}")

    def on_event(self, event: Event) -> None:
        """Show one event."""
        if event["kind"] == "run":
            self._run = event["name"]
            self._say(event, f"run {self._run}")
        elif event["kind"] == "note":
            if event["text"] not in self._notes:  # Every start tells them again.
                self._notes.add(event["text"])
                self._say(event, f"note: {event['text']}")
        elif event["kind"] == "start":
            self._on_start(event)
        elif event["kind"] == "progress":
            self._on_progress(event)
        elif event["kind"] == "epoch":
            self._on_epoch(event)

    def _on_start(self, event: Event) -> None:
        step, workers = int(event["step"]), len(event["workers"])
        self._total_steps = int(event["total_steps"])
        if self._workers is not None:
            self._say(event, f"{_what_happened(self._workers, workers)} from step {step}")
        elif step:
            self._say(event, f"going on from step {step} of {self._total_steps}")
        self._workers = workers
        if self._task is None:
            self._task = self._bar.add_task("training", total=self._total_steps, figures="")
        self._bar.update(self._task, completed=step, total=self._total_steps)

    def _on_progress(self, event: Event) -> None:
        figures = (
            f"loss {event['loss']:.4f}  accuracy {event['accuracy']:.4f}  "
            f"{event['images_per_s']:,.0f} images/s  ETA {format_eta(event['eta_s'])}"
        )
        self._show(f"epoch {event['epoch']}", int(event["step"]), figures)
        if not self._live and event["time"] - self._said_at >= LINE_EVERY_S:
            self._say(
                event,
                f"epoch {event['epoch']:>3}  step {event['step']} of {event['total_steps']}  "
                f"{figures}",
            )

    def _on_epoch(self, event: Event) -> None:
        self._epoch_seconds.append(event["seconds"])
        eta = self._eta(event)
        self._say(
            event,
            f"epoch {event['epoch']:>3}  train loss {event['train_loss']:.4f} "
            f"accuracy {event['train_accuracy']:.4f}  val loss {event['val_loss']:.4f} "
            f"accuracy {event['val_accuracy']:.4f}  {event['images_per_s']:,.0f} images/s"
            + (f"  ETA {format_eta(eta)}" if eta else ""),
        )
        figures = f"val accuracy {event['val_accuracy']:.4f}  ETA {format_eta(eta)}"
        self._show(f"epoch {event['epoch']}", int(event["step"]), figures)

    def _eta(self, event: Event) -> float:
        """Seconds that the epochs which are left take, if they take what those took so far."""
        left = self._total_steps * event["epoch"] / event["step"] - event["epoch"]
        seconds: float = statistics.median(self._epoch_seconds) * max(0.0, left)
        return seconds

    def _say(self, event: Event, text: str) -> None:
        self._said_at = event["time"]
        self._output.say(text)

    def _show(self, description: str, step: int, figures: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, description=description, completed=step, figures=figures)


def format_eta(seconds: float) -> str:
    """``3:07`` or ``1:03:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _what_happened(before: int, now: int) -> str:
    """Why workers begin again, as the beginning of a sentence."""
    if now > before:
        return f"more CPUs or GPUs are free: going on with {now} workers instead of {before}"
    if now < before:
        return f"a worker died, and no other is free: going on with {now} instead of {before}"
    return "a worker died; its place was filled: going on"
