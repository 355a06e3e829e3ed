"""Where workers leave what they have to tell, and the driver takes it from."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import DataError
from cluster.events import Event, EventSink, make_event


@ray.remote(num_cpus=0, max_restarts=-1)
class EventBoard:
    """Where workers leave events for the driver, and a problem for those that come after them.

    Outlives the workers; holds no CPU.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._problem: DataError | None = None

    def report(self, problem: DataError) -> None:
        """Leave what every worker must end with."""
        self._problem = problem

    def problem(self) -> DataError | None:
        """What a worker reported, if one did."""
        return self._problem

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """Remove and return all events."""
        taken, self._events = self._events, []
        return taken


def start_board() -> Any:
    """A board on this very machine: another one may be lost, and all that it holds with it."""
    here = ray.get_runtime_context().get_node_id()
    placed = NodeAffinitySchedulingStrategy(here, soft=False)
    return EventBoard.options(scheduling_strategy=placed).remote()  # type: ignore[attr-defined]


class BoardSink(EventSink):
    """Sends events to the board, and waits for nothing."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def emit(self, kind: str, **values: Any) -> None:
        """Send one event."""
        self._board.put.remote(make_event(kind, values))
