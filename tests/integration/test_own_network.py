"""A user's own network on a folder of odd images, by jobs sent from a folder of the user's own.

The folder of the job, with the network in it, is gone before the model is exported and served.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import CliResult, RunCli, free_port, run_command
from odd_files import odd_files
from pictures import write_class_folders

from cluster.bundle import Bundle, find_bundle
from cluster.images import decode_image
from cluster.runtime import open_session, softmax
from cluster.session import connect
from cluster.settings import Settings
from cluster.store import Store
from serve.client import Client
from train.config import FileConfig
from train.models.file import build_from_file
from train.runs import find_run

SOURCE = """
from torch import nn

def build(shape, num_classes, width=4):
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(4 * width, num_classes),
    )
"""
CLASSES = ("odd", "plain")


class Project:
    """A folder that is not the checkout, from which jobs are sent with Ray's own command."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.variables = settings.environment()
        with connect(settings) as session:
            assert session.dashboard_url is not None
            self._address = session.dashboard_url

    def job(self, *args: str) -> CliResult:
        """``ray job submit -- python -m ARGS...``, to its end."""
        environment = ",".join(f'"{name}":"{value}"' for name, value in self.variables.items())
        return run_command(
            [
                *(str(Path(sys.executable).with_name("ray")), "job", "submit"),
                *("--working-dir", "."),
                *("--runtime-env-json", f'{{"env_vars":{{{environment}}}}}', "--"),
                *(sys.executable, "-m", *args),
            ],
            # What `cluster up` prints, for Ray's own commands.
            env={"RAY_AUTH_MODE": "token", "RAY_API_SERVER_ADDRESS": self._address},
            cwd=self.folder,
        )


@pytest.fixture(scope="module")
def project(ray_session: Settings, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    (folder / "my_net.py").write_text(SOURCE)
    return Project(folder, ray_session)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of which one holds a file of every odd kind, of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    odd_files(write_class_folders(folder, CLASSES, 30) / "odd")
    return folder


@pytest.fixture(scope="module")
def trained(project: Project, photos: Path, run_cli: RunCli) -> CliResult:
    """A run named ``own``, made by a job; then the network's file is removed."""
    ingested = run_cli(
        *("train", "ingest", str(photos), "--name", "odd-photos", "--size", "8"),
        env=project.variables,
        cwd=project.folder,
    )
    assert ingested.exit_code == 0, ingested.stderr
    source, weights = project.folder / "my_net.py", project.folder / "first.pth"
    own = FileConfig(path=source, factory="build", options={"width": 6})
    # Of three classes, as if it had been trained on other data.
    torch.save(build_from_file(own, (3, 8, 8), 3).state_dict(), weights)
    job = project.job(
        *("train", "fit", "digits", "--data", "odd-photos", "--model", "my_net.py:build"),
        *("--set", "model.options.width=6", "--pretrained", "first.pth", "--name", "own"),
        *("--set", "normalize=half", "--set", "epochs=1", "--set", "batch_size=16"),
        *("--workers", "2"),
    )
    assert job.exit_code == 0, job.stdout + job.stderr
    source.unlink()
    weights.unlink()
    return job


@pytest.fixture(scope="module")
def bundle(project: Project, trained: CliResult, ray_session: Settings) -> Bundle:
    job = project.job("train", "export", "own", "--model", "own", "--register", "--json")
    assert job.exit_code == 0, job.stdout + job.stderr
    (line,) = (line for line in job.stdout.splitlines() if line.startswith('{"'))
    found = find_bundle(Store(ray_session.store), json.loads(line)["bundle_digest"])
    assert found is not None
    return found


@pytest.fixture(scope="module")
def address(project: Project, bundle: Bundle, run_cli: RunCli) -> Iterator[str]:
    port = free_port()
    job = project.job("serve", "deploy", "own", "--port", str(port))
    assert job.exit_code == 0, job.stdout + job.stderr
    yield f"http://127.0.0.1:{port}"
    assert run_cli("serve", "down", env=project.variables).exit_code == 0


def test_the_weights_that_fit_are_taken(trained: CliResult) -> None:
    assert "first.pth: 7 of 9 tensors loaded; random: 6.weight, 6.bias" in trained.stdout


def test_a_bundle_says_what_it_was_made_of(bundle: Bundle) -> None:
    assert bundle.manifest.model.options["options"] == {"width": 6}
    assert bundle.manifest.normalization.mean == (0.5,) * 3
    assert bundle.manifest.lineage.first_weights is not None
    assert bundle.manifest.lineage.first_weights.name == "first.pth"


def test_odd_files_are_answered_as_what_a_person_sees(
    address: str, bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    seen = odd_files(tmp_path / "odd")
    session = open_session(bundle)
    with Client(address) as client:
        for name, shown in seen.items():
            encoded = (photos / "odd" / name).read_bytes()
            pixels = np.asarray(shown.convert("RGB")).transpose(2, 0, 1)
            np.testing.assert_array_equal(decode_image(encoded, bundle.manifest.image), pixels)
            offline = softmax(session.run(pixels[None]))[0]
            answer = client.classify("own", encoded)
            served = [answer.probabilities[label] for label in CLASSES]
            np.testing.assert_allclose(served, offline, rtol=1e-5, err_msg=name)


def test_the_run_goes_on_without_the_file(
    project: Project, bundle: Bundle, ray_session: Settings, run_cli: RunCli
) -> None:
    again = run_cli(
        *("train", "resume", "own", "--epochs", "2", "--json"),
        env=project.variables,
        cwd=project.folder,
    )
    assert again.exit_code == 0, again.stderr
    photos = find_run(Store(ray_session.store), "own").dataset(Store(ray_session.store))
    assert again.json["steps"] == 2 * (photos.meta.splits["train"].rows // 16)

    kept = find_run(Store(ray_session.store), "own").path / "model_source" / "my_net.py"
    kept.write_text(SOURCE.replace("0.1", "0.2"))
    changed = run_cli("train", "export", "own", env=project.variables, cwd=project.folder)
    assert changed.exit_code == 2
    assert "my_net.py was changed: it is not the file that the run began with" in changed.stderr
