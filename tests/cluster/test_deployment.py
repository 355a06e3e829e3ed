"""What Kubernetes would not take, and addresses that pods would not reach."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.deployment import Deployment, shared_addresses
from cluster.errors import UserError
from cluster.settings import Settings


def test_names_that_would_break_a_file() -> None:
    for changes, message in (
        ({"image": "a b"}, "--image a b"),
        ({"namespace": "Prod\nkind: Secret"}, "--namespace Prod"),
        ({"store_claim": "a/b"}, "--store-claim a/b"),
        ({"head_ip": "; rm"}, "address '; rm'"),
        ({"ssh_user": "me: you"}, "--ssh-user"),
        ({"max_workers": 1}, "--max-workers 1 is less than --workers 2"),
        ({"gpus_per_worker": 4}, "--cpus-per-worker 2 is less than --gpus-per-worker 4"),
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
    for uri in (
        f"sqlite:///{tmp_path}/mlflow.db",
        *("http://127.0.0.1:5000", "http://127.0.0.2:5000", "http://[::1]:5000"),
        *("http://localhost:5000", "http://0.0.0.0:5000"),
    ):
        with pytest.raises(UserError, match="this machine only: run `mlflow server"):
            shared_addresses(bucket.model_copy(update={"tracking_uri": uri}), None)
    for server in ("127.0.0.1%3A9000", "[::1]:9000", "localhost:9000"):
        here = bucket.model_copy(update={"remote": f"s3://bucket/x?endpoint_override={server}"})
        with pytest.raises(UserError, match=r"RAYBRIDGE_STORE=s3://.* is on this machine only"):
            shared_addresses(here, None)
    there = bucket.model_copy(update={"remote": "s3://bucket/x?endpoint_override=minio.lan:9000"})
    assert shared_addresses(there, None)["RAYBRIDGE_STORE"] == there.remote
