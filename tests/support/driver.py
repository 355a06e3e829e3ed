"""A driver as users write them: joins or starts a cluster, runs a task, prints what it saw as JSON.

Run from a checkout: ``python tests/support/driver.py``.
"""

import json
import os
import sys
import time
from typing import Any

sys.path.insert(0, os.getcwd())


def look_around() -> dict[str, Any]:
    """What a worker sees of our package and settings."""
    import cluster.store
    from cluster.settings import Settings

    return {"store": str(Settings.from_env().store), "package": cluster.store.__file__}


def hold(seconds: float) -> None:
    """Keep a CPU busy, for Ray."""
    time.sleep(seconds)


def main() -> None:
    """Take the seconds to hold a CPU for from the command line."""
    import cluster.session
    from cluster.settings import Settings

    with cluster.session.connect(Settings.from_env(), label="the test's driver") as session:
        import ray

        worker = ray.get(ray.remote(look_around).options(num_cpus=1).remote())
        seen = {
            "started": session.started,
            "cpus": session.total().cpus,
            "package": cluster.session.__file__,
            "worker": worker,
        }
        if len(sys.argv) > 1:
            holder = ray.remote(hold).options(num_cpus=1).remote(float(sys.argv[1]))
            print("holding", flush=True)  # noqa: T201
            ray.get(holder)
    print(json.dumps(seen))  # noqa: T201


if __name__ == "__main__":
    main()
