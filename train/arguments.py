"""What the texts mean that several commands take as arguments."""

import re
from typing import Any

from cluster.errors import ConfigError

_WORKERS = re.compile(r"(?:(?P<fewest>\d+):)?(?P<workers>\d+)")


def parse_workers(text: str) -> dict[str, Any]:
    """``N``, or ``MIN:MAX`` for a run that goes on with fewer where no more are free.

    Returns:
        Fields of ``resources``.

    Raises:
        ConfigError: it is neither.
    """
    match = _WORKERS.fullmatch(text.strip())
    if match is not None:
        workers = int(match["workers"])
        fewest = None if match["fewest"] is None else int(match["fewest"])
        if workers >= 1 and (fewest is None or 1 <= fewest <= workers):
            return {"workers": workers, "min_workers": fewest}
    raise ConfigError(
        f"--workers {text}: expected a number such as 2, or MIN:MAX such as 1:4, with MIN of 1 or "
        "more and MAX no less"
    )
