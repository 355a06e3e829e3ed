"""The three ways to run a command, in both states of Ray's token authentication.

Without a token file ``ray start`` runs an open cluster; after one private cluster of ours (or one
``ray.init()``) there is a token, and the next ``ray start`` asks for it. Each test has a home and
ports of its own, and its clusters end with it.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import ROOT, CliResult, NeedPackage, free_port, run_command, run_module

DRIVER = "tests/support/driver.py"
# Ray's core says these before it reads any setting: the first on machines without a network.
UNASKED = ("Failed to determine local IP via external connectivity", "Failed to get cluster ID")


class Machine:
    """A home, a Ray folder and a store of one test's own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.token = self.home / ".ray" / "auth_token"
        self.env = {
            "HOME": str(self.home),
            "RAY_TMPDIR": str(folder),
            "RAYBRIDGE_STORE": str(folder / "store"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": "",
            "RAY_ADDRESS": "",
            # A head that is told to end waits this long for work to move to other nodes.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)

    def leave_token(self) -> None:
        """What an earlier ``ray.init()`` leaves behind."""
        self.token.parent.mkdir()
        self.token.write_text("0123456789abcdef" * 4)

    def shell(self, script: str, timeout_s: float = 120) -> CliResult:
        """Run lines as somebody types them into a fresh shell."""
        return run_command(["bash", "-ec", script], env=self.env, timeout_s=timeout_s)

    def run(self, *args: str) -> CliResult:
        """Run ``python -m ARGS...``."""
        return run_module(*args, env=self.env, timeout_s=120)

    @contextlib.contextmanager
    def ray_start(self, before: str = "") -> Iterator[None]:
        """``ray start --head`` in a shell, as the README has it but for ports of its own."""
        script = (
            f"{before}\nexec ray start --head --block --num-cpus=2 --port={free_port()} "
            f"--dashboard-port={free_port()} --dashboard-agent-listen-port={free_port()} "
            f"--ray-client-server-port={free_port()} --disable-usage-stats"
        )
        process = subprocess.Popen(
            ["bash", "-ec", script],
            env={**os.environ, **self.env},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 60
            # Written last, when `ray start` gives the prompt back.
            recorded = Path(self.env["RAY_TMPDIR"], "ray", "ray_current_cluster")
            while not recorded.exists():
                assert process.poll() is None, "ray start failed"
                assert time.monotonic() < deadline, "ray start did not come up"
                time.sleep(0.3)
            yield
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            _, alive = psutil.wait_procs([psutil.Process(process.pid), *family], timeout=20)
            for survivor in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    survivor.kill()
            process.wait()

    def processes(self) -> list[str]:
        """Ray's processes that belong to this machine."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = " ".join(process.info["cmdline"] or [])
            if f"{self.env['RAY_TMPDIR']}/ray/" in command:
                found.append(command[:200])
        return found


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Short: a Unix socket's path may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
    yield Machine(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["no token", "token"])
def both_states(request: pytest.FixtureRequest, machine: Machine) -> Machine:
    """The machine without a token file, and with one that an earlier run left behind."""
    if request.param == "token":
        machine.leave_token()
    return machine


def noise(result: CliResult) -> list[str]:
    """Lines on standard error that a user did not ask for."""
    lines = result.stderr.splitlines()
    return [line for line in lines if not any(part in line for part in UNASKED)]


def test_no_cluster_running(both_states: Machine) -> None:
    result = run_command([sys.executable, DRIVER], env=both_states.env)
    assert result.exit_code == 0, result.stderr
    assert result.json == {
        "started": True,
        "cpus": os.cpu_count(),
        "package": str(ROOT / "cluster" / "session.py"),
        "worker": {
            "store": both_states.env["RAYBRIDGE_STORE"],
            "package": str(ROOT / "cluster" / "store.py"),
        },
    }
    assert len(result.stdout.splitlines()) == 1, "Ray printed to standard output"
    assert noise(result) == []
    assert both_states.processes() == [], "the private cluster was not stopped"


# The README's lines, in a first shell and in a second one.
FIRST_SHELL = """
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null
"""
SECOND_SHELL = "export RAY_AUTH_MODE=token\n"


FIT = "python -m train fit digits --workers 2 --set epochs=1"


def test_fit_in_all_three_ways(machine: Machine) -> None:
    ingested = machine.run("train", "ingest", "digits", "--name", "digits")
    assert ingested.exit_code == 0, ingested.stderr
    with machine.ray_start(before=FIRST_SHELL):
        attached = machine.shell(f"{FIT} --name attached --json")
        assert attached.exit_code == 0, attached.stderr

        job = machine.shell(
            f"{SECOND_SHELL} ray job submit --working-dir . -- {FIT} --name submitted"
        )
        assert job.exit_code == 0, job.stdout + job.stderr

        # Told at once, not waited for.
        greedy = machine.shell(f"{FIT} --workers 64", timeout_s=60)
        assert greedy.exit_code == 2
        assert "needs 64 CPUs; this cluster has 2 CPUs in all" in noise(greedy)[-1]
    private = machine.shell(f"{FIT} --name private --json")
    assert private.exit_code == 0, private.stderr
    assert machine.processes() == []
    runs = machine.run("cluster", "runs", "--json").json["runs"]
    assert {(run["name"], run["status"]) for run in runs} == {
        (name, "FINISHED") for name in ("attached", "submitted", "private")
    }


def test_driver_and_workers_of_a_job_import_the_copy(machine: Machine) -> None:
    with machine.ray_start(before=FIRST_SHELL):
        attached = run_command([sys.executable, DRIVER], env=machine.env)
        assert attached.exit_code == 0, attached.stderr
        assert attached.json["started"] is False
        assert attached.json["worker"]["store"] == machine.env["RAYBRIDGE_STORE"]
        assert noise(attached) == []

        job = machine.run("cluster", "submit", "--json", "--", "python", DRIVER)
        assert job.exit_code == 0, job.stderr
        assert '"started": false' in job.stderr
        assert f'"store": "{machine.env["RAYBRIDGE_STORE"]}"' in job.stderr
        assert "working_dir_files" in job.stderr
        assert str(ROOT / "cluster") not in job.stderr


def test_an_open_cluster_before_and_after_a_token_appears(machine: Machine) -> None:
    with machine.ray_start():
        for _ in range(2):
            attached = run_command([sys.executable, DRIVER], env=machine.env)
            assert attached.exit_code == 0, attached.stderr
            assert attached.json["started"] is False
            job = machine.run("cluster", "submit", "--", "python", "-c", "print('in the job')")
            assert job.exit_code == 0, job.stderr
            assert "in the job" in job.stdout
            if not machine.token.exists():
                machine.leave_token()


def test_a_token_that_this_user_does_not_have(machine: Machine, tmp_path: Path) -> None:
    machine.leave_token()
    with machine.ray_start():
        stranger = {**machine.env, "HOME": str(tmp_path)}
        for command in (["cluster", "status"], ["cluster", "submit", "--", "true"]):
            result = run_module(*command, env=stranger, timeout_s=60)
            assert result.exit_code == 2
            (line,) = noise(result)
            assert line.startswith("error: the ")
            assert "wants its token, and this user has none or another" in line


def test_up_submit_status_down(both_states: Machine) -> None:
    ports = ("--port", str(free_port()), "--dashboard-port", str(free_port()))
    up = both_states.run("cluster", "up", "--num-cpus", "2", *ports, "--json")
    try:
        assert up.exit_code == 0, up.stderr
        assert up.json["started"] is True
        assert both_states.token.exists(), "an open cluster runs anybody's code as its user"
        again = both_states.run("cluster", "up", *ports, "--json")
        assert again.json == {**up.json, "started": False}

        job = both_states.run(
            *("cluster", "submit", "--env", "COLOR=blue", "--json", "--"),
            *("python", "-c", "import os, sys; print(os.environ['COLOR']); sys.exit(7)"),
        )
        assert job.exit_code == 7
        assert job.json["exit_code"] == 7
        assert job.json["status"] == "FAILED"
        assert "blue" in job.stderr

        status = both_states.run("cluster", "status", "--json")
        assert status.exit_code == 0, status.stderr
        assert status.json["address"] == up.json["address"]
        assert status.json["free"] == {"cpus": 2.0, "gpus": 0.0}
        assert status.json["store"] == both_states.env["RAYBRIDGE_STORE"]
    finally:
        down = both_states.run("cluster", "down", "--json")
    assert down.json == {"stopped": up.json["address"]}
    assert both_states.processes() == []
    assert both_states.run("cluster", "status").exit_code == 2


NETWORK = """
ip link set lo up
ip link add outward type veth peer name peer
ip addr add 192.0.2.7/24 dev outward
ip link set outward up
ip link set peer up
ip route add default via 192.0.2.1
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes network namespaces")
def test_a_machine_on_a_network_keeps_the_cluster_to_itself(
    machine: Machine, need_debian_package: NeedPackage
) -> None:
    need_debian_package("iproute2", program="ip")
    script = f"""{NETWORK}
        trap 'python -m cluster down >&2' EXIT
        python -m cluster up --num-cpus 2 >&2
        python {DRIVER}
        python -m cluster submit -- python {DRIVER} >&2
        echo open: $(ss -Hltn | awk '{{print $4}}' | grep -v '127[.]0[.]0[.]')
        RAYBRIDGE_STORE=$HOME/other RAY_ADDRESS=local python {DRIVER} >&2
    """
    result = run_command(
        ["unshare", "--net", "bash", "-ec", script], env=machine.env, timeout_s=180
    )
    assert result.exit_code == 0, result.stderr
    joined, listening = result.stdout.splitlines()
    assert '"started": false' in joined
    assert listening == "open:", "ports that the network reaches"
    assert "192.0.2.7" not in result.stderr


def test_ctrl_c_stops_the_job(machine: Machine) -> None:
    ports = ("--port", str(free_port()), "--dashboard-port", str(free_port()))
    started = machine.run("cluster", "up", "--num-cpus", "2", *ports)
    assert started.exit_code == 0
    (export,) = re.findall(r"for Ray's own commands.*: (export .*)", started.stdout)
    try:
        submitting = subprocess.Popen(
            [
                *(sys.executable, "-m", "cluster", "submit", "--name", "long", "--"),
                *("python", "-u", "-c", "import time; print('at work'); time.sleep(300)"),
            ],
            env={**os.environ, **machine.env},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert submitting.stdout is not None
        for line in submitting.stdout:
            if "at work" in line:
                break
        submitting.send_signal(signal.SIGINT)
        out, err = submitting.communicate(timeout=60)
        assert submitting.returncode == 130, err
        assert "stopping job long" in out
        assert "Traceback" not in err
        deadline = time.monotonic() + 30
        while True:
            status = machine.shell(f"{export}; ray job status long")
            if "stopped" in status.stdout.lower():
                break
            assert time.monotonic() < deadline, status
    finally:
        machine.run("cluster", "down")
