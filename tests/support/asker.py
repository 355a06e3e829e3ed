"""Asks a served model without a pause until standard input ends, then tells what became of it.

    python tests/support/asker.py URL MODEL IMAGE

Two askers work side by side: the package's client, and a plain one that asks every question once.
The last line of output is JSON.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PAUSE_S = 0.02


def ask(url: str, model: str, image: bytes, stop: threading.Event, retry_for_s: float) -> Any:
    """Classify one image over and over.

    Returns:
        How many answers there were, the failures, and the longest time without an answer.
    """
    from serve.client import Client

    answers, failures, longest_s, last = 0, [], 0.0, time.monotonic()
    with Client(url, retry_for_s=retry_for_s) as client:
        while not stop.wait(PAUSE_S):
            try:
                client.classify(model, image)
            except Exception as error:  # noqa: BLE001 - any failure is what is counted
                failures.append(f"{type(error).__name__}: {error}")
                continue
            now = time.monotonic()
            answers, longest_s, last = answers + 1, max(longest_s, now - last), now
    return {"answers": answers, "failures": failures, "longest_s": round(longest_s, 2)}


def main() -> None:
    """Take the address, the model and an image's file from the command line."""
    url, model, image = sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes()
    stop = threading.Event()
    results: dict[str, Any] = {}

    def work(name: str, retry_for_s: float) -> None:
        results[name] = ask(url, model, image, stop, retry_for_s)

    threads = [
        threading.Thread(target=work, args=("patient", 15.0)),
        threading.Thread(target=work, args=("plain", 0.0)),
    ]
    for thread in threads:
        thread.start()
    print("asking", flush=True)  # noqa: T201
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(results))  # noqa: T201


if __name__ == "__main__":
    main()
