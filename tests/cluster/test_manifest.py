"""The files that ``cluster manifest`` writes have only fields that Ray and KubeRay document."""

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from bundles import write_bundle
from datasets import write_dataset
from harness import ROOT
from typer.testing import CliRunner

import train.__main__
from cluster.__main__ import app
from cluster.bundle import Lineage
from cluster.deployment import Deployment
from cluster.errors import DataError, UserError
from cluster.manifest import FILES, HAPROXY_FOLDER, render, write
from cluster.retraining import IMPORT_RECIPE, Origin, read_origin
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import ModelVersion, Tracking
from train.config import IMPORT_RECIPE as TRAINS_NAME_FOR_IT
from train.config import FileConfig, TrainConfig
from train.models.file import build_from_file
from train.preparing import pin_source
from train.recipes import get_recipe
from train.runs import create_run

KUBERAY = json.loads((Path(__file__).parent / "data" / "kuberay.json").read_text())
ENVIRONMENT = {
    "RAYBRIDGE_STORE": "s3://bucket/it's?region=eu&scheme=http",
    "MLFLOW_TRACKING_URI": "http://mlflow.lan:5000",
}
CONFIG = get_recipe("digits").model_dump(mode="json")
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
    gpus_per_worker=4,
    cpus_per_worker=12,
    workers=4,
    max_workers=4,
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
    return render(
        *(deployment, ENVIRONMENT, version, f"{name}@champion", LINEAGE, Origin(config)),
        Path("deploy"),
    )


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


def test_each_gpu_has_a_worker_of_its_own_and_what_serves_has_none() -> None:
    texts = written(GPU, CONFIG)
    (_, job), (service,) = checked(texts["rayjob.yaml"]), checked(texts["rayservice.yaml"])

    def gpus(cluster: Any) -> list[Any]:
        containers = [pod["containers"][0] for pod in pods(cluster)]
        return [one["resources"]["limits"].get("nvidia.com/gpu") for one in containers]

    assert gpus(job["spec"]["rayClusterSpec"]) == [None, "4"]
    assert gpus(service["spec"]["rayClusterConfig"]) == [None, None]
    shown = what_the_job_trains(job, Path("unused"))
    assert shown.resources.workers == 16
    assert shown.resources.cpus_per_worker == 3
    assert shown.resources.device == "cuda"


def what_the_job_trains(job: Any, mounted: Path) -> TrainConfig:
    """What ``train`` itself makes of a job's command, with a folder where the pod has its own."""
    words = shlex.split(job["spec"]["entrypoint"].replace("/etc/raybridge", str(mounted)))
    assert words[:3] == ["python", "-m", "train"]
    if "--config" in words and not mounted.exists():
        where = words.index("--config")
        del words[where : where + 2]
    result = CliRunner().invoke(train.__main__.app, [*words[3:], "--show", "--json"])
    assert result.exit_code == 0, result.exception
    return TrainConfig.decode(json.loads(result.stdout.splitlines()[-1]), "the job")


def mount(config_map: Any, folder: Path) -> Path:
    """A ConfigMap's files, as a pod has them."""
    folder.mkdir()
    for name, text in config_map["data"].items():
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz.")
        (folder / name).write_text(text.replace("/etc/raybridge", str(folder)), "utf-8")
    return folder


OWN_NET = """
    # Blank line and spaces in front, spaces and no newline at the end: \u00e4 \U0001f40d # {{ x }}
if True:
\tfrom torch import nn


def build(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes))
    """


@pytest.mark.parametrize("source", [OWN_NET, OWN_NET.strip() + "\n\n"])
def test_a_network_of_the_users_own_goes_along(source: str, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "my net (1).py"
    file.write_text(source, "utf-8")
    choice = FileConfig(path=file, factory="build")
    model = choice.model_copy(update=pin_source(choice))
    config = get_recipe("digits").model_copy(update={"model": model, "epochs": 3})
    create_run(store, config, write_dataset(store), "own-1")
    file.unlink()
    lineage = LINEAGE.model_copy(update={"run": "own-1"})
    version = ModelVersion("own", 1, (), "d" * 64, "own-1", {}, 0)
    origin = read_origin(store, lineage)
    texts = render(PLAIN, ENVIRONMENT, version, "own", lineage, origin, Path("deploy"))
    config_map, job = checked(texts["rayjob.yaml"])
    trained = what_the_job_trains(job, mount(config_map, tmp_path / "mounted"))
    assert isinstance(trained.model, FileConfig)
    assert trained.model.sha256 == model.sha256
    build_from_file(trained.model, (1, 8, 8), 10)  # Compares the digest.
    assert (trained.epochs, trained.optim) == (3, config.optim)


def test_a_published_network_and_a_lost_run(store: Store, tmp_path: Path) -> None:
    texts = written(config=CONFIG)
    config_map, job = checked(texts["rayjob.yaml"])
    trained = what_the_job_trains(job, mount(config_map, tmp_path / "mounted"))
    assert trained.model == get_recipe("digits").model
    origin = read_origin(store, LINEAGE)
    assert origin == Origin()
    (job,) = checked(written()["rayjob.yaml"])
    assert what_the_job_trains(job, tmp_path).resources.workers == PLAIN.workers


def test_what_cannot_be_trained_there(store: Store) -> None:
    assert IMPORT_RECIPE == TRAINS_NAME_FOR_IT
    imported = LINEAGE.model_copy(update={"recipe": IMPORT_RECIPE})
    origin = read_origin(store, imported)
    version = ModelVersion("taken", 1, (), "d" * 64, "digits-1", {}, 0)
    texts = render(PLAIN, ENVIRONMENT, version, "taken", imported, origin, Path("deploy"))
    assert tuple(texts) == ("Dockerfile", "rayservice.yaml", "cluster.yaml")
    folder = store.folder("runs/digits-1")
    for changes, obstacle in (
        ({"pretrained": "/home/me/w.pth"}, "began with /home/me/w.pth of one machine"),
        ({"model": {"name": "file", "path": "model_source/x.py"}}, "no longer has model_source/x"),
    ):
        folder.write_json("config.json", {**CONFIG, **changes})
        assert obstacle in str(read_origin(store, LINEAGE).obstacle)
    folder.write_json("config.json", {**CONFIG, "pretrained": "torchvision"})
    assert read_origin(store, LINEAGE).obstacle is None
    for damaged in ("{", "7"):
        (folder.path / "config.json").write_text(damaged)
        with pytest.raises(DataError, match=r"config.json of run digits-1 cannot be read"):
            read_origin(store, LINEAGE)


def test_a_batch_that_does_not_divide() -> None:
    with pytest.raises(UserError, match=r"batch size of 64, .* among 3 workers; choose --workers"):
        written(Deployment(workers=3), CONFIG)


def test_names_stay_names() -> None:
    deployment = Deployment(namespace="123", store_claim="0x1")
    texts = written(deployment, CONFIG, name="2cats")
    documents = [*checked(texts["rayjob.yaml"]), *checked(texts["rayservice.yaml"])]
    assert {document["metadata"]["namespace"] for document in documents} == {"123"}
    *_, service = documents
    # A service's name begins with a letter (RFC 1035).
    assert service["metadata"]["name"] == "model-2cats"
    for pod in pods(service["spec"]["rayClusterConfig"]):
        (claim,) = [one for one in pod["volumes"] if one["name"] == "store"]
        assert claim["persistentVolumeClaim"] == {"claimName": "0x1"}


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
    assert {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"} <= set(options)


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


def test_edited_files_are_not_written_over(tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "one", "rayjob.yaml": "one"}, replace=False)
    with pytest.raises(UserError, match=r"has Dockerfile, rayjob.yaml already; .* --replace"):
        write(tmp_path, {"Dockerfile": "two"}, replace=False)
    assert (tmp_path / "Dockerfile").read_text() == "one"
    write(tmp_path, {"Dockerfile": "two"}, replace=True)
    assert (tmp_path / "Dockerfile").read_text() == "two"
    assert not (tmp_path / "rayjob.yaml").exists(), "it was of another model"
    with pytest.raises(UserError, match="Dockerfile is a file; name a folder"):
        write(tmp_path / "Dockerfile", {"Dockerfile": "three"}, replace=True)


def test_the_command(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lineage = LINEAGE.model_copy(update={"run": "digits-7"})
    bundle = write_bundle(tmp_path / "bundle", name="digits", lineage=lineage)
    Tracking(settings).register("digits", bundle, run_id=None)
    Store(settings.store).folder("runs/digits-7").write_json("config.json", CONFIG)
    arguments = ["manifest", "digits", "--out", str(tmp_path / "out"), "--json"]
    refused = CliRunner().invoke(app, arguments, env=settings.environment())
    assert isinstance(refused.exception, UserError), "pods do not see a folder of this machine"
    monkeypatch.setattr("cluster.manifest.shared_addresses", lambda *_: ENVIRONMENT)
    result = CliRunner().invoke(app, arguments, env=settings.environment())
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["files"] == list(FILES)
    config_map, job = checked((tmp_path / "out" / "rayjob.yaml").read_text())
    assert json.loads(config_map["data"]["config.json"]) == CONFIG
    assert what_the_job_trains(job, mount(config_map, tmp_path / "mounted")).data == "digits"

    imported = lineage.model_copy(update={"recipe": IMPORT_RECIPE})
    bundle = write_bundle(tmp_path / "imported", name="digits", lineage=imported)
    Tracking(settings).register("digits", bundle, run_id=None, aliases=["champion"])
    result = CliRunner().invoke(app, [*arguments, "--replace"], env=settings.environment())
    assert result.exit_code == 0, result.exception
    assert "rayjob.yaml" not in json.loads(result.stdout)["files"]
    assert "note: no rayjob.yaml: digits:2 cannot be trained again" in result.stderr
    assert not (tmp_path / "out" / "rayjob.yaml").exists()
