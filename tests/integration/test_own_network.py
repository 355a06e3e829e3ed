"""A network from a file of the user's, on a real cluster, long after the file is gone."""

from pathlib import Path

import torch
from harness import RunCli

from cluster.bundle import find_bundle
from cluster.dataset import Dataset
from cluster.runtime import open_session
from cluster.settings import Settings
from cluster.store import Store
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


def test_a_job_trains_it_and_needs_the_file_no_more(
    ray_session: Settings, digits_dataset: Dataset, run_cli: RunCli, tmp_path: Path
) -> None:
    source = tmp_path / "my_net.py"
    source.write_text(SOURCE)
    own = FileConfig(path=source, factory="build", options={"width": 6})
    # Of three classes, as if it had been trained on other data.
    torch.save(build_from_file(own, (1, 8, 8), 3).state_dict(), tmp_path / "first.pth")
    env = {"RAYBRIDGE_STORE": str(ray_session.store)}
    # The job's folder is a copy that is thrown away.
    job = run_cli(
        *("cluster", "submit", "--json", "--", "python", "-m", "train", "fit", "digits"),
        *("--model", "my_net.py:build", "--set", "model.options.width=6", "--workers", "2"),
        *("--pretrained", "first.pth", "--set", "normalize=half", "--set", "epochs=1"),
        *("--name", "own"),
        cwd=tmp_path,
        env=env,
    )
    assert job.exit_code == 0, job.stderr
    assert "first.pth: 7 of 9 tensors loaded; random: 6.weight, 6.bias" in job.stderr
    source.unlink()
    (tmp_path / "first.pth").unlink()

    again = run_cli("train", "resume", "own", "--epochs", "2", "--json", cwd=tmp_path, env=env)
    assert again.exit_code == 0, again.stderr
    assert again.json["steps"] == 2 * (1259 // 64)
    exported = run_cli("train", "export", "own", "--json", cwd=tmp_path, env=env)
    assert exported.exit_code == 0, exported.stderr
    store = Store(ray_session.store)
    bundle = find_bundle(store, exported.json["bundle_digest"])
    assert bundle is not None
    assert bundle.manifest.model.options["options"] == {"width": 6}
    assert bundle.manifest.normalization.mean == (0.5,)
    assert bundle.manifest.lineage.first_weights is not None
    assert bundle.manifest.lineage.first_weights.name == "first.pth"
    images = digits_dataset.split("test").take(slice(0, 7))
    assert open_session(bundle).run(images).shape == (7, 10)

    kept = find_run(store, "own").path / "model_source" / "my_net.py"
    kept.write_text(SOURCE.replace("0.1", "0.2"))
    changed = run_cli("train", "export", "own", cwd=tmp_path, env=env)
    assert changed.exit_code == 2
    assert "my_net.py was changed: it is not the file that the run began with" in changed.stderr
