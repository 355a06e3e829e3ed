"""Fixtures that every test may ask for, and the two rules that hold for all of them.

Tests never see the machine's own cluster, token, store or tracking server. Where a test stands
decides its marker: ``tests/{cluster,train,serve}`` are plain tests without a cluster,
``tests/integration`` shares one Ray, ``tests/e2e`` and ``tests/behaviour`` do as they say.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT, CliResult, NeedPackage, RunCli, free_port, run_module
from hosts import Lab, NoNamespacesError, laboratory
from servers import AWS_ENVIRONMENT, S3Server, mlflow_server, s3_server
from warm import Warm

from cluster.settings import CACHE_VARIABLE, STORE_VARIABLE, TRACKING_VARIABLE, Settings
from cluster.store import Store

pytest_plugins = ["digits", "inside"]

FOLDER_MARKERS = {"integration": "integration", "e2e": "e2e", "behaviour": "behaviour"}
# Beginnings of the reasons of skips that continuous integration does not accept.
MISSING_PACKAGE = "Debian package"
NO_NAMESPACES = "network namespaces"

# Variables of the developer's shell that would change what is tested.
_FOREIGN_VARIABLES = (
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"),
    *("RAY_AUTH_TOKEN_PATH", "RAY_JOB_CONFIG_JSON_ENV_VAR", STORE_VARIABLE, TRACKING_VARIABLE),
    *(CACHE_VARIABLE, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"),
    *("AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"),
)


# Fixtures that start a program: what uses them is not among the fast tests.
PROGRAMS = frozenset({"run_cli", "s3", "mlflow_address"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by the folder it stands in, and by whether it starts programs."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        item.add_marker(FOLDER_MARKERS.get(folder, "unit"))
        if PROGRAMS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("program")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In continuous integration, a skip for want of something installable is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    skips = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    wanted = [skip for skip in skips if MISSING_PACKAGE in skip or NO_NAMESPACES in skip]
    if wanted and os.environ.get("RAYBRIDGE_CI") and exitstatus == 0:
        reporter.write_line(f"continuous integration must not skip: {wanted}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def need_debian_package() -> NeedPackage:
    """Skip the test unless a program, or a path, of a Debian package is there."""

    def need(package: str, *, path: str = "", program: str = "") -> None:
        there = Path(path).exists() if path else shutil.which(program or package) is not None
        if not there:
            pytest.skip(f"{MISSING_PACKAGE} {package} is not installed")

    return need


@pytest.fixture(scope="session", autouse=True)
def own_machine() -> Iterator[Path]:
    """A home and a Ray folder of this test session's own, in place of the user's."""
    # A test runner that was started in the background ignores Ctrl-C, and so would every command
    # that it starts; a handler of our own is not inherited, and neither is the ignoring.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Short: a Unix socket's path may have 107 bytes, and Ray appends some 60.
    folder = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
    (folder / "home").mkdir()
    saved = dict(os.environ)
    for name in _FOREIGN_VARIABLES:
        os.environ.pop(name, None)
    os.environ |= {
        "HOME": str(folder / "home"),
        "RAY_TMPDIR": str(folder),
        STORE_VARIABLE: str(folder / "store"),
        **AWS_ENVIRONMENT,
        # Workers and commands find the checkout, from whatever folder they are started.
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [saved.get("PYTHONPATH")])]),
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    yield folder
    os.environ.clear()
    os.environ |= saved
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Whatever a test, or Ray inside it, does to the environment ends with the test."""
    saved = dict(os.environ)
    yield
    if dict(os.environ) != saved:
        os.environ.clear()
        os.environ |= saved


@pytest.fixture(scope="session")
def empty_tracking(own_machine: Path) -> Path:
    """MLflow's SQLite without a run: to make its tables takes longer than most tests."""
    from cluster.tracking import Tracking

    made = _settings_at(own_machine / "empty")
    assert Tracking(made).runs() == []
    return made.store / "mlflow.db"


@pytest.fixture
def settings(tmp_path: Path, empty_tracking: Path) -> Settings:
    """A fresh store, and an MLflow of its own."""
    shutil.copy(empty_tracking, tmp_path / "mlflow.db")
    return Settings(store=tmp_path / "store", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The store of ``settings``."""
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def shared_settings(own_machine: Path) -> Settings:
    """One store for the whole session: what is dear to make is made once in it."""
    return _settings_at(own_machine / "shared")


@pytest.fixture(scope="session")
def ray_session(shared_settings: Settings) -> Iterator[Settings]:
    """One Ray cluster of two CPUs for the whole session, that commands join by ``RAY_ADDRESS``.

    It is started as a user does, by ``up``, so that commands in processes of their own can join
    it; a test that wants to be a driver itself uses ``connect(ray_session)``.
    """
    from cluster import head

    info = head.up(
        shared_settings, num_cpus=2, port=free_port(), dashboard_port=free_port(), num_gpus=0
    )
    # Set for the session, so that the guard around each test takes it for granted.
    os.environ["RAY_ADDRESS"] = info.address
    yield shared_settings
    os.environ.pop("RAY_ADDRESS", None)
    head.down(shared_settings)


@pytest.fixture(scope="session")
def s3(own_machine: Path) -> Iterator[S3Server]:
    """An S3 server with a bucket ``raybridge``; tests use prefixes apart."""
    with s3_server() as server:
        server.make_bucket("raybridge")
        yield server


@pytest.fixture(scope="session")
def mlflow_address(own_machine: Path) -> Iterator[str]:
    """The address of an MLflow server; tests use names apart."""
    with mlflow_server() as address:
        yield address


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A switch to which a test module connects hosts of its own."""
    try:
        with laboratory() as made:
            yield made
    except NoNamespacesError as error:
        pytest.skip(f"{NO_NAMESPACES} cannot be made here: {error}")


@pytest.fixture(scope="session")
def run_cli(own_machine: Path) -> Iterator[RunCli]:
    """Run a command of ours in a process of its own, warm where that makes no difference."""
    warm = Warm()

    def run(
        *args: str,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 300,
    ) -> CliResult:
        environment = {**os.environ, **(env or {})}
        if not warm.takes(args[0], environment):
            return run_module(*args, env=env, cwd=cwd, timeout_s=timeout_s)
        return CliResult(*warm.run(args, environment, cwd or ROOT, timeout_s))

    yield run
    warm.close()


def _settings_at(folder: Path) -> Settings:
    return Settings(store=folder, tracking_uri=f"sqlite:///{folder}/mlflow.db")
