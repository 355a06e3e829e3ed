"""What a run tells about itself while it works: small records, kept as JSON lines."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

Event = dict[str, Any]


class EventSink(Protocol):
    """Takes events; must not fail and must not wait."""

    def emit(self, kind: str, **values: Any) -> None:
        """Record one event."""


class NullSink:
    """Drops events."""

    def emit(self, kind: str, **values: Any) -> None:
        """Drop one event."""


def make_event(kind: str, values: Mapping[str, Any]) -> Event:
    """An event of now."""
    return {"kind": kind, "time": time.time(), **values}


def append_events(path: Path, events: list[Event]) -> None:
    """Add events to a run's log."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def read_events(path: Path) -> Iterator[Event]:
    """Events of a log, oldest first; a line that a kill cut short is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue
