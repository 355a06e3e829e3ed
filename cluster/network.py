"""Does something answer at an address, and if not, why?"""

import http.client
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping

ASK_TIMEOUT_S = 5.0


def http_status(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    by_proxy: bool = False,
    timeout_s: float = ASK_TIMEOUT_S,
) -> int | str:
    """The status that a URL is answered with, or why there is no answer.

    Args:
        url: asked by GET.
        headers: of the request.
        by_proxy: go where ``http_proxy`` and the like say, for what may be outside the cluster.
        timeout_s: without a single byte.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(None if by_proxy else {}))
    try:
        request = urllib.request.Request(url, headers=dict(headers or {}))
        with opener.open(request, timeout=timeout_s) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return str(error.reason)
    except http.client.HTTPException as error:
        return f"what answers is no HTTP server: {' '.join(str(error).split())!r}"
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__


def http_problem(url: str) -> str | None:
    """Why nothing useful answers at a URL of the cluster, or None.

    That it asks for a token will do.
    """
    status = http_status(url)
    if isinstance(status, str):
        return status
    return None if status < 400 or status in {401, 403} else f"HTTP {status}"


def tcp_problem(host: str, port: int, timeout_s: float = ASK_TIMEOUT_S) -> str | None:
    """Why nothing takes a connection at a port, or None."""
    try:
        socket.create_connection((host, port), timeout_s).close()
    except (OSError, OverflowError) as error:
        return str(error) or type(error).__name__
    return None


def is_free(port: int, host: str = "") -> bool:
    """Whether a server could listen at a port, by default on every interface."""
    with socket.socket() as listener:
        # As servers do: a port in TIME_WAIT is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True
