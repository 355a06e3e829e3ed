"""The trained digits model over HTTP, and training and a search beside it on two CPUs."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray.tune as ray_tune
import torch
from digits import RegisteredModel
from harness import RunCli, free_port

from cluster.dataset import Dataset, Split
from cluster.images import encode_png
from cluster.runtime import open_session, softmax
from cluster.session import connect
from cluster.settings import Settings
from cluster.store import Store
from serve.client import Client
from train.export import load_classifier
from train.fit import FitOutcome
from train.inference import predict

# tritonclient brings gevent, which wants a process of its own.
TRITON = textwrap.dedent(
    """
    import json, sys
    import numpy as np
    import tritonclient.http as http

    address, images_file, out = sys.argv[1:]
    images = np.load(images_file)
    client = http.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
    metadata = client.get_model_metadata("digits")
    answers = []
    for binary in (True, False):
        tensor = http.InferInput("images", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images, binary_data=binary)
        wanted = http.InferRequestedOutput("logits", binary_data=binary)
        answers.append(client.infer("digits", [tensor], outputs=[wanted]).as_numpy("logits"))
    np.save(out, np.stack(answers))
    print(json.dumps(metadata))
    """
)


@pytest.fixture(scope="module")
def address(
    ray_session: Settings, digits_bundle: RegisteredModel, run_cli: RunCli
) -> Iterator[str]:
    environment = ray_session.environment()
    reference = f"{digits_bundle.name}:{digits_bundle.version}"
    port = str(free_port())
    done = run_cli("serve", "deploy", reference, "--port", port, "--json", env=environment)
    assert done.exit_code == 0, done.stderr
    yield done.json["url"]
    assert run_cli("serve", "down", env=environment).exit_code == 0


@pytest.fixture(scope="module")
def test_split(digits_dataset: Dataset) -> Split:
    split = digits_dataset.split("test")
    return Split(split.take(slice(None)), split.labels)


def test_tritonclient_gets_pytorchs_answers(
    address: str,
    digits_fit: FitOutcome,
    ray_session: Settings,
    test_split: Split,
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "images.npy", test_split.images)
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", TRITON, address.removeprefix("http://")),
            *(str(tmp_path / "images.npy"), str(tmp_path / "answers.npy")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    metadata = json.loads(done.stdout)
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 1, 8, 8]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    classifier = load_classifier(digits_fit.run, digits_fit.run.dataset(Store(ray_session.store)))
    expected = predict(classifier, test_split, torch.device("cpu"))
    for answer in np.load(tmp_path / "answers.npy"):
        assert np.abs(answer - expected).max() < 1e-4
        assert np.array_equal(answer.argmax(1), expected.argmax(1))


def test_pictures_are_classified_as_offline(
    address: str, digits_bundle: RegisteredModel, test_split: Split
) -> None:
    session = open_session(digits_bundle.bundle)
    names = digits_bundle.bundle.manifest.class_names
    with Client(address) as client:
        for image in test_split.images[:100]:
            answer = client.classify("digits", encode_png(image))
            offline = softmax(session.run(image[None]))[0]
            assert answer.index == offline.argmax()
            served = [answer.probabilities[name] for name in names]
            assert np.allclose(served, offline, rtol=0, atol=1e-5)


def test_training_and_a_search_fit_beside_serving_on_two_cpus(
    address: str, ray_session: Settings, test_split: Split
) -> None:
    """Replicas and drivers reserve nothing: both CPUs are there for workers and trials."""

    def trial(config: dict[str, float]) -> None:
        ray_tune.report({"score": config["x"] ** 2})

    with connect(ray_session, label="search beside training") as session:
        assert session.free().cpus == 2
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(trial, {"cpu": 1}),
            param_space={"x": ray_tune.grid_search([1.0, 2.0])},
            tune_config=ray_tune.TuneConfig(max_concurrent_trials=1),
            run_config=ray_tune.RunConfig(
                storage_path=str(ray_session.store / "search"), verbose=0, name="beside"
            ),
        )
        fit = ["fit", "digits", "--workers", "1", "--set", "resources.cpus_per_worker=1"]
        training = subprocess.Popen(
            [sys.executable, "-m", "train", *fit, "--set", "epochs=40", "--json"],
            env={**os.environ, **ray_session.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        results = tuner.fit()
        scores = [results[index].metrics for index in range(len(results))]
        assert sorted(metrics["score"] for metrics in scores if metrics) == [1, 4]
        stdout, stderr = training.communicate(timeout=200)
    assert training.returncode == 0, stderr
    assert json.loads(stdout.strip().splitlines()[-1])["workers"] == 1
    with Client(address) as client:
        assert client.infer("digits", test_split.images[:3]).shape == (3, 10)
