"""The files that ``cluster manifest`` writes have only fields that Ray and KubeRay document."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from bundles import write_bundle
from harness import ROOT
from typer.testing import CliRunner

from cluster.__main__ import app
from cluster.bundle import Lineage
from cluster.errors import UserError
from cluster.manifest import FILES, HAPROXY_FOLDER, Deployment, render, shared_addresses, write
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import ModelVersion, Tracking

KUBERAY = json.loads((Path(__file__).parent / "data" / "kuberay.json").read_text())
ENVIRONMENT = {
    "RAYBRIDGE_STORE": "s3://bucket/it's?region=eu&scheme=http",
    "MLFLOW_TRACKING_URI": "http://mlflow.lan:5000",
}
CONFIG = {"recipe": "digits", "epochs": 3, "note": "a: b\n# c"}
LINEAGE = Lineage(
    run="digits-1",
    mlflow_run_id=None,
    dataset="digits@1",
    dataset_digest="0" * 64,
    recipe="digits",
    seed=0,
    commit=None,
    libraries={},
)
PLAIN = Deployment()
GPU = Deployment(
    gpus_per_worker=1,
    workers=3,
    max_workers=3,
    store_claim="store",
    head_ip="192.0.2.1",
    worker_ips=("192.0.2.2", "192.0.2.3"),
)


def written(
    deployment: Deployment = PLAIN,
    config: dict[str, Any] | None = None,
    name: str = "digits",
) -> dict[str, str]:
    """The text of each file."""
    version = ModelVersion(name, 3, ("champion",), "d" * 64, "digits-1", {}, 0)
    reference = f"{name}@champion"
    return render(deployment, ENVIRONMENT, version, reference, LINEAGE, config, Path("deploy"))


def checked(text: str) -> list[Any]:
    """The documents of a file, all of whose fields are known."""
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        schema = {"$ref": f"#/$defs/{document['kind']}", "$defs": KUBERAY["$defs"]}
        jsonschema.validate(document, schema)
    return documents


def pods(cluster: Any) -> list[Any]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize(
    ("deployment", "config"), [(Deployment(), CONFIG), (Deployment(), None), (GPU, CONFIG)]
)
def test_fields_of_kuberay(deployment: Deployment, config: dict[str, Any] | None) -> None:
    texts = written(deployment, config)
    assert tuple(texts) == FILES
    *maps, job = checked(texts["rayjob.yaml"])
    (service,) = checked(texts["rayservice.yaml"])
    training, serving = job["spec"]["rayClusterSpec"], service["spec"]["rayClusterConfig"]
    for cluster in (training, serving):
        assert cluster["authOptions"] == {"mode": "token", "secretName": "raybridge-token"}
        for pod in pods(cluster):
            (container,) = pod["containers"]
            assert {one["name"]: one["value"] for one in container["env"]} == ENVIRONMENT
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
            assert pod["securityContext"]["runAsNonRoot"] is True
    assert training["enableInTreeAutoscaling"] is False
    assert serving["enableInTreeAutoscaling"] is (deployment.max_workers > deployment.workers)
    (group,) = serving["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (
        deployment.workers,
        deployment.max_workers,
    )
    if config is not None:
        assert json.loads(maps[0]["data"]["config.json"]) == config
    assert ("--config" in shlex.split(job["spec"]["entrypoint"])) is (config is not None)


def test_gpus_are_of_the_workers_only() -> None:
    (_, job) = checked(written(GPU, CONFIG)["rayjob.yaml"])
    head, worker = pods(job["spec"]["rayClusterSpec"])
    limits = [pod["containers"][0]["resources"]["limits"] for pod in (head, worker)]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == [None, "1"]
    assert "resources.device=cuda" in job["spec"]["entrypoint"]


@pytest.mark.parametrize("deployment", [Deployment(), GPU])
def test_fields_of_ray_up(deployment: Deployment) -> None:
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(written(deployment)["cluster.yaml"])
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(config, json.loads(schema.read_text()))
    validate_config(prepare_config(config))
    # Docker's options become one line of a shell.
    options = shlex.split(" ".join(config["docker"]["run_options"]))
    assert f"RAYBRIDGE_STORE={ENVIRONMENT['RAYBRIDGE_STORE']}" in options


def test_what_ray_serve_is_told() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve.config import ServeConfig
    from serve.declarative import ModelArgs, RootArgs
    from serve.replica import APP_PREFIX, ROOT_APP

    (service,) = checked(written(name="My_Model.v2")["rayservice.yaml"])
    assert service["metadata"]["name"] == "my-model-v2"
    values = yaml.safe_load(service["spec"]["serveConfigV2"])
    config = ServeDeploySchema.model_validate(values)
    # Ray takes what it does not know in silence.
    assert set(values) <= set(ServeDeploySchema.model_fields)
    root, model = config.applications
    assert (root.name, root.route_prefix) == (ROOT_APP, "/")
    assert model.name == f"{APP_PREFIX}My_Model.v2"
    assert model.route_prefix == "/v2/models/My_Model.v2"
    RootArgs.model_validate(root.args)
    arguments = ModelArgs.model_validate(model.args)
    assert arguments.reference == "My_Model.v2@champion"
    assert arguments.cpus_per_replica > 0, "no pod would ever be added"
    assert arguments.config != ServeConfig()
    assert config.controller_options is not None


def test_the_dockerfile_copies_what_is_there() -> None:
    lines = written()["Dockerfile"].replace("\\\n", "").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and line[0] not in "# "]
    assert {step for step, _ in steps} == {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "USER"}
    copied = [source for step, rest in steps if step == "COPY" for source in rest.split()[:-1]]
    assert {"pyproject.toml", "requirements.lock", "cluster", "train", "serve"} <= set(copied)
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert [rest for step, rest in steps if step == "USER"] == ["ray"]
    assert str(HAPROXY_FOLDER) in lines[-1]


def test_names_that_would_break_a_file() -> None:
    for changes, message in (
        ({"image": "a b"}, "--image a b"),
        ({"namespace": "Prod\nkind: Secret"}, "--namespace Prod"),
        ({"store_claim": "a/b"}, "--store-claim a/b"),
        ({"head_ip": "; rm"}, "address '; rm'"),
        ({"ssh_user": "me: you"}, "--ssh-user"),
        ({"max_workers": 1}, "--max-workers 1 is less than --workers 2"),
    ):
        with pytest.raises(UserError, match=message):
            replace(Deployment(), **changes).check()


def test_addresses_that_pods_do_not_reach(tmp_path: Path) -> None:
    folder = Settings(store=tmp_path, tracking_uri="http://mlflow.lan:5000")
    bucket = folder.model_copy(update={"remote": "s3://bucket/store"})
    assert shared_addresses(bucket, None)["RAYBRIDGE_STORE"] == "s3://bucket/store"
    assert shared_addresses(folder, "claim")["RAYBRIDGE_STORE"] == str(tmp_path)
    with pytest.raises(UserError, match=r"is a folder, .* export RAYBRIDGE_STORE=s3://BUCKET"):
        shared_addresses(folder, None)
    with pytest.raises(UserError, match="needs no volume"):
        shared_addresses(bucket, "claim")
    for uri in (f"sqlite:///{tmp_path}/mlflow.db", "http://127.0.0.1:5000"):
        with pytest.raises(UserError, match="this machine only: run `mlflow server"):
            shared_addresses(bucket.model_copy(update={"tracking_uri": uri}), None)
    secret = bucket.model_copy(update={"tracking_uri": "http://me:secret@mlflow.lan:5000"})
    with pytest.raises(UserError, match="holds a password") as caught:
        shared_addresses(secret, None)
    assert "me:secret" not in str(caught.value)


def test_edited_files_are_not_written_over(tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "one", "rayjob.yaml": "one"}, replace=False)
    with pytest.raises(UserError, match=r"has Dockerfile already; .* --replace"):
        write(tmp_path, {"Dockerfile": "two"}, replace=False)
    assert (tmp_path / "Dockerfile").read_text() == "one"
    write(tmp_path, {"Dockerfile": "two"}, replace=True)
    assert (tmp_path / "Dockerfile").read_text() == "two"


def test_the_command(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundle", run="tiny-7")
    Tracking(settings).register("tiny", bundle, run_id=None)
    Store(settings.store).folder("runs/tiny-7").write_json("config.json", CONFIG)
    arguments = ["manifest", "tiny", "--out", str(tmp_path / "out"), "--json"]
    refused = CliRunner().invoke(app, arguments, env=settings.environment())
    assert isinstance(refused.exception, UserError), "pods do not see a folder of this machine"
    monkeypatch.setattr("cluster.manifest.shared_addresses", lambda *_: ENVIRONMENT)
    result = CliRunner().invoke(app, arguments, env=settings.environment())
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["files"] == list(FILES)
    configuration, job = checked((tmp_path / "out" / "rayjob.yaml").read_text())
    assert json.loads(configuration["data"]["config.json"]) == CONFIG
    assert "fit tiny --config" in job["spec"]["entrypoint"]
