"""What a worker has to tell, until the driver asks how it is doing and takes it along."""

import threading
from typing import Any

from cluster.events import Event, EventSink, make_event


class Outbox(EventSink):
    """Holds events; what its process has not handed over is lost with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def emit(self, kind: str, **values: Any) -> None:
        """Add one event."""
        with self._lock:
            self._events.append(make_event(kind, values))

    def take(self) -> list[Event]:
        """Remove and return all events, the oldest first."""
        with self._lock:
            taken, self._events = self._events, []
        return taken


OUTBOX = Outbox()
"""That of this process."""
