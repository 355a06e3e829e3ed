"""Does something answer at an address, and if not, why?"""

import socket
import urllib.error
import urllib.request

ASK_TIMEOUT_S = 5.0


def http_problem(url: str, timeout_s: float = ASK_TIMEOUT_S) -> str | None:
    """Why nothing useful answers at a URL, or None. That it asks for a password will do."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in {401, 403} else f"HTTP {error.code}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__


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
