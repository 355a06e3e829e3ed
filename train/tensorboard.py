"""TensorBoard's event files of a run: ``tensorboard --logdir STORE/runs`` shows all of them.

Written one event at a time, without the threads of tensorboardX's ``SummaryWriter``: a thread that
fails tells nobody, and here a write that fails is counted while training goes on.
"""

import logging
import socket
import time
from collections.abc import Callable, Mapping

from tensorboardX.proto.event_pb2 import Event as Record
from tensorboardX.proto.event_pb2 import SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from cluster.events import Event
from cluster.store import Folder

logger = logging.getLogger(__name__)

EPOCH_TAGS = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/val": "val_accuracy",
    "lr": "lr",
    "grad_norm": "grad_norm",
    "images_per_s": "images_per_s",
}
"""Names of scalars, each with its key in an "epoch" event."""
PROGRESS_TAGS = {"progress/loss": "loss", "progress/accuracy": "accuracy", "progress/lr": "lr"}
"""As above, of a "progress" event."""


class TensorBoardLog:
    """Writes what a run tells as scalars by optimizer step. A write that fails is counted.

    Args:
        folder: where the event files are; each command that trains the run adds one.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._writer: RecordWriter | None = None
        self._name = ""
        self.failures = 0
        self.last_failure = ""
        self._try(self._open)

    def write(self, event: Event) -> None:
        """Write the scalars of an event of training; of any other, nothing."""
        if event["kind"] == "epoch":
            self._scalars(event, EPOCH_TAGS)
            self._flush()
        elif event["kind"] == "progress":
            self._scalars(event, PROGRESS_TAGS)
        elif event["kind"] == "start":
            # TensorBoard forgets what was told of this and later steps: by workers that died. The
            # epoch that ended with the checkpoint's step stays.
            step = int(event["step"])
            start = SessionLog(status=SessionLog.START)
            self._add(
                Record(wall_time=event["time"], step=step + 1 if step else 0, session_log=start)
            )

    def close(self) -> None:
        """Write the rest, and let other hosts see it."""
        writer = self._writer
        if writer is None:
            return
        self._writer = None
        self._try(writer.close)
        self._try(lambda: self._folder.push(self._name))

    def _open(self) -> None:
        self._folder.path.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files of this name, in the order of their names.
        self._name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}"
        self._writer = RecordWriter(str(self._folder.path / self._name))
        self._add(Record(wall_time=time.time(), file_version="brain.Event:2"))

    def _scalars(self, event: Event, tags: Mapping[str, str]) -> None:
        values = [
            Summary.Value(tag=tag, simple_value=float(event[key]))
            for tag, key in tags.items()
            if event.get(key) is not None
        ]
        self._add(
            Record(wall_time=event["time"], step=int(event["step"]), summary=Summary(value=values))
        )

    def _add(self, record: Record) -> None:
        writer = self._writer
        if writer is not None:
            self._try(lambda: writer.write(record.SerializeToString()))

    def _flush(self) -> None:
        if self._writer is not None:
            self._try(self._writer.flush)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001 - a curve that is not drawn must not end a run
            if self.failures == 0:
                logger.warning("events for TensorBoard were not written: %s", error)
            self.failures += 1
            self.last_failure = str(error)
