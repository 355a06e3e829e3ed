"""What the driver does with what the workers tell: it keeps it, counts it, and passes it on."""

from collections.abc import Callable, Iterator

from cluster.errors import RaybridgeError
from cluster.events import Event, append_events, make_event
from cluster.tracking import RunLog
from train.runs import Run
from train.tensorboard import TensorBoardLog

EventListener = Callable[[Event], None]

TRACKED = (
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("lr", "grad_norm", "images_per_s"),
)
"""Of an epoch, what MLflow is told."""


class Watch:
    """Keeps a run's events in its folder, in TensorBoard's files and in MLflow.

    Args:
        run: whose events they are.
        log: the run at MLflow.
        listener: told every event, after it was kept.
    """

    def __init__(self, run: Run, log: RunLog, listener: EventListener) -> None:
        self._run = run
        self._log = log
        self._listener = listener
        self._board = TensorBoardLog(run.tensorboard)
        self._checkpoint_failures = 0
        self._event_failures = 0
        self.starts = 0
        """How often workers began to work."""
        run.path.mkdir(parents=True, exist_ok=True)
        if run.folder.has(run.events_file.name):
            run.folder.pull(run.events_file.name)  # Which another host may have written to.
        self._told_step = max((int(event["step"]) for event in run.events("epoch")), default=0)

    def __call__(self, events: list[Event]) -> None:
        """Take the next events, in order."""
        events = list(self._completed(events))
        append_events(self._run.events_file, events)
        for event in events:
            self._board.write(event)
            if event["kind"] == "start":
                self.starts += 1
            elif event["kind"] == "checkpoint_failures":
                self._checkpoint_failures += int(event["count"])
            elif event["kind"] == "epoch":
                values = {name: event[name] for name in TRACKED if name in event}
                self._log.metrics(values, int(event["step"]))
                self._push_events()
            self._listener(event)

    def _completed(self, events: list[Event]) -> Iterator[Event]:
        """With the epochs of which a worker, or a driver, was killed before it could tell.

        Workers that go on begin with the history of their checkpoint.
        """
        for event in events:
            if event["kind"] == "start":
                for entry in event.pop("history"):
                    if entry["step"] > self._told_step:
                        self._told_step = int(entry["step"])
                        yield make_event("epoch", entry)
            elif event["kind"] == "epoch":
                self._told_step = max(self._told_step, int(event["step"]))
            yield event

    def close(self) -> None:
        """Let other hosts see all of it."""
        self._board.close()
        self._push_events()

    def failures(self) -> dict[str, int]:
        """Writes that failed so far, by what they were of."""
        return {
            "checkpoints": self._checkpoint_failures,
            "events": self._event_failures,
            "tensorboard": self._board.failures,
            "tracking": self._log.failures,
        }

    def _push_events(self) -> None:
        try:
            self._run.folder.push(self._run.events_file.name)
        except RaybridgeError:
            self._event_failures += 1
