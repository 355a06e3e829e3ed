"""Moving a running model to another generation, all replicas or none, without a lost request.

Two phases: every replica opens what the new generation needs while it still serves the old one;
only if all succeed is the document written, and then they are told to look. Serve's own
configuration is not touched: a changed one would restart the replicas.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

from cluster.errors import RaybridgeError, ServingError
from serve.config import ServeConfig
from serve.document import Owner, ServedDocument, ServedDocuments, ServedVersion

PREPARE_TIMEOUT_S = 300.0
COMMIT_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 30.0
SETTLE_POLL_S = 0.2


class Fleet(Protocol):
    """The running replicas of one model."""

    def call_all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Call a method on every running replica; no replicas give no results.

        Raises:
            RaybridgeError: a replica failed or did not answer in time.
        """


def next_document(
    model: str,
    version: ServedVersion,
    config: ServeConfig,
    previous: ServedDocument | None,
    owners: tuple[Owner, ...] = (),
) -> ServedDocument:
    """The generation that serves ``version`` alone, on ``owners``, after ``previous``."""
    return ServedDocument(
        model=model,
        generation=previous.generation + 1 if previous else 1,
        versions=(version.model_copy(update={"share": 1.0}),),
        config=config,
        owners=owners,
    )


def roll_out(
    documents: ServedDocuments,
    fleet: Fleet,
    document: ServedDocument,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Bring every running replica to ``document``, or leave everything as it was.

    Returns:
        How many replicas now serve it. Those that are starting follow by themselves.

    Raises:
        RaybridgeError: a replica could not open it: nothing has changed.
        ServingError: it is committed, but some replica does not follow; the message says how many.
    """
    text = document.model_dump_json()
    try:
        fleet.call_all("prepare", text, timeout_s=PREPARE_TIMEOUT_S)
    except RaybridgeError:
        _forget(fleet)
        raise
    documents.write(document)
    states = fleet.call_all("commit", timeout_s=COMMIT_TIMEOUT_S)
    # A replica that was starting may have read the old document just before.
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while not all(state["generation"] >= document.generation for state in states):
        if time.monotonic() > deadline:
            problems = sorted({str(state["problem"]) for state in states if state["problem"]})
            behind = sum(state["generation"] < document.generation for state in states)
            raise ServingError(
                f"{behind} of {len(states)} replicas of {document.model!r} do not follow "
                f"generation {document.generation}: {'; '.join(problems) or 'no reason given'}"
            )
        sleep(SETTLE_POLL_S)
        states = fleet.call_all("commit", timeout_s=COMMIT_TIMEOUT_S)
    return len(states)


def _forget(fleet: Fleet) -> None:
    # It only frees memory, and the failure that led here is the one to report.
    with contextlib.suppress(RaybridgeError):
        fleet.call_all("forget_prepared", timeout_s=COMMIT_TIMEOUT_S)
