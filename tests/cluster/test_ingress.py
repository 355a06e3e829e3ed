"""HAProxy's configuration after our wrapper, and where its files go."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import ingress
from cluster.errors import RaybridgeError
from cluster.haproxy_wrapper import config_path, tighten, unavailable_page

CONFIG = """global
    stats socket /tmp/x/admin.sock mode 666 level admin expose-fd listeners
    maxconn 4096
defaults
    mode http
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
    balance leastconn
frontend prometheus
    bind :9101
    mode http
    no log
frontend http_frontend
    bind 127.0.0.1:8000
    acl routes path -i /-/routes
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found."
backend http-model-x
    default-server fall 2 check
    # Servers in this backend
    server one 10.0.0.1:30000 check observe layer4
listen stats
  bind *:8404
  stats enable
"""


def test_only_the_http_port_is_left_and_the_socket_is_ours() -> None:
    tight = tighten(CONFIG, "/run/x")
    binds = [line.strip() for line in tight.splitlines() if line.strip().startswith("bind")]
    assert binds == ["bind 127.0.0.1:8000"]
    assert "stats enable" not in tight
    assert "mode 600 level admin" in tight
    assert "mode 666" not in tight


def test_clients_have_a_time_limit_and_errors_are_json() -> None:
    lines = [line.strip() for line in tighten(CONFIG, "/run/x").splitlines()]
    assert lines[lines.index("defaults") + 1] == "timeout http-request 20s"
    assert "errorfile 502 /run/x/503.http" in lines
    assert not any("500.http" in line for line in lines)
    assert any("status 404 content-type application/json" in line for line in lines)
    start = lines.index("frontend http_frontend")
    assert lines[start + 2] == "http-request set-header x-request-disconnect-disabled ?1"


def test_a_machine_that_falls_silent_is_given_up_in_seconds() -> None:
    lines = [line.strip() for line in tighten(CONFIG, "/run/x").splitlines()]
    # For a request that waits for its answer, and for one that never arrived.
    assert lines[lines.index("option srvtcpka") + 1] == "srvtcpka-idle 1s"
    assert "server one 10.0.0.1:30000 check observe layer4 tcp-ut 3s" in lines
    assert "# Servers in this backend" in lines
    assert "default-server fall 2 check" in lines


def test_tightening_twice_changes_nothing() -> None:
    once = tighten(CONFIG, "/run/x")
    assert tighten(once, "/run/x") == once


def test_headers_that_ray_would_trip_over_are_taken_out() -> None:
    tight = tighten(CONFIG, "/run/x")
    frontend = tight[tight.index("frontend http_frontend") : tight.index("acl routes")]
    assert "del-header ^(x-request-timeout-seconds|" in frontend
    assert "del-header x-request-id if" in frontend


def test_the_error_page_is_a_whole_http_answer() -> None:
    head, _, body = unavailable_page().partition("\r\n\r\n")
    status, *headers = head.split("\r\n")
    assert status.split()[1] == "503"
    assert f"content-length: {len(body)}" in headers
    assert "retry-after: 1" in headers
    assert list(json.loads(body)) == ["error"]


def test_the_configuration_is_found_among_the_arguments() -> None:
    assert config_path(["-db", "-f", "/x.cfg", "-sf", "12"]) == "/x.cfg"
    assert config_path(["-v"]) is None


@pytest.mark.skipif(ingress.haproxy_problem() is not None, reason="HAProxy is on Linux only")
def test_haproxy_accepts_the_tightened_configuration(tmp_path: Path) -> None:
    wrapper = ingress.install_wrapper(tmp_path / "h")
    config = tmp_path / "h" / "haproxy.cfg"
    # Serve's own template, rendered by Serve's own code.
    render = (
        "import sys; from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig; "
        "from ray.serve.config import HTTPOptions; folder = sys.argv[1]; "
        "api = HAProxyApi(cfg=HAProxyConfig(http_options=HTTPOptions(host='127.0.0.1', "
        "port=18000), socket_path=folder + '/a.sock', server_state_base=folder, "
        "server_state_file=folder + '/state', metrics_socket_path=folder + '/m.sock'), "
        "config_file_path=folder + '/haproxy.cfg'); api._generate_config_file_internal()"
    )
    subprocess.run([sys.executable, "-c", render, str(config.parent)], check=True)
    written = config.read_text()
    for title in ("frontend prometheus", "listen stats", "mode 666 level admin", "errorfile 503"):
        assert title in written
    done = subprocess.run(
        [str(wrapper), "-c", "-f", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tight = config.read_text()
    assert tight == tighten(written, str(config.parent))
    assert "prometheus" not in tight


def test_the_folder_is_nobody_elses(tmp_path: Path) -> None:
    wrapper = ingress.install_wrapper(tmp_path / "h")
    assert ingress.install_wrapper(tmp_path / "h") == wrapper
    assert stat.S_IMODE((tmp_path / "h").stat().st_mode) == 0o700
    assert os.access(wrapper, os.X_OK)
    (tmp_path / "link").symlink_to(tmp_path / "h")
    with pytest.raises(RaybridgeError, match="belongs to another user"):
        ingress.install_wrapper(tmp_path / "link")


@pytest.mark.parametrize(
    ("temp_dir", "inside"), [("/tmp/ray", True), ("/home/someone/very/long/path/to/ray", False)]
)
def test_socket_paths_stay_short(temp_dir: str, inside: bool) -> None:
    folder = ingress.haproxy_folder(Path(temp_dir))
    assert folder.is_relative_to(temp_dir) is inside
    assert len(f"{folder}/{'0' * 56}/admin.sock.4194304.tmp") <= 107


def test_switches_are_strings_and_replicas_share_the_controllers() -> None:
    switches = ingress.controller_switches(Path("/x"), num_cpus=2)
    assert all(isinstance(value, str) for value in switches.values())
    assert switches.items() >= ingress.replica_switches().items()
    assert switches["RAY_SERVE_HAPROXY_NBTHREAD"] == "1"
