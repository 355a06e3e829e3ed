"""Warm starts: first weights from a bundle or from the registry, verified, and told in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bundles import relist, write_bundle

from cluster.bundle import WEIGHTS_FILE, Bundle
from cluster.dataset import Dataset
from cluster.errors import BundleError, CheckpointError, ConfigError, NotFoundError, UserError
from cluster.registry import Registry
from cluster.settings import Settings
from train.config import TrainConfig
from train.models.choice import parse_model
from train.models.classifier import build_classifier
from train.pretrained import Pretrained, load_pretrained, pin_pretrained


def configure(pretrained: str | Path | None, model: str = "net", seed: int = 0) -> TrainConfig:
    values = {"recipe": "test", "data": "digits", "seed": seed, "model": parse_model(model)}
    text = None if pretrained is None else str(pretrained)
    return TrainConfig.decode({**values, "pretrained": text}, "test")


def net_bundle(folder: Path, digits: Dataset, seed: int = 7) -> Bundle:
    """A bundle with the weights of ``net`` for digits."""
    net = build_classifier(configure(None, seed=seed), digits.meta).net
    write_bundle(folder, seed=seed)
    safetensors.torch.save_file(net.state_dict(), folder / WEIGHTS_FILE)
    relist(folder)
    return Bundle.open(folder)


def load(
    config: TrainConfig, digits: Dataset, registry: Callable[[], Registry] | None = None
) -> tuple[torch.nn.Module, Pretrained]:
    net = build_classifier(config, digits.meta).net
    return net, load_pretrained(net, config, digits.meta, registry=registry)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, digits_dataset: Dataset) -> Registry:
    """Two versions of model ``net``; the first is the champion."""
    folder = tmp_path_factory.mktemp("registry")
    made = Registry(Settings(store=folder, tracking_uri=f"sqlite:///{folder}/mlflow.db"))
    for seed in (1, 2):
        bundle = net_bundle(folder / f"bundle{seed}", digits_dataset, seed)
        made.register("net", bundle, run_id=None)
        shutil.rmtree(bundle.path)
    return made


def is_of_seed(net: torch.nn.Module, seed: int, digits: Dataset) -> bool:
    own = build_classifier(configure(None, seed=seed), digits.meta).net.state_dict()
    return all(torch.equal(value, own[name]) for name, value in net.state_dict().items())


def test_a_bundles_folder_gives_its_weights(tmp_path: Path, digits_dataset: Dataset) -> None:
    bundle = net_bundle(tmp_path / "warm", digits_dataset)
    net, told = load(configure(bundle.path), digits_dataset)
    assert is_of_seed(net, 7, digits_dataset)
    assert str(told) == "warm: 8 of 8 tensors loaded"
    assert told.source.sha256 == bundle.digest


def test_a_changed_bundle_is_refused(tmp_path: Path, digits_dataset: Dataset) -> None:
    bundle = net_bundle(tmp_path / "warm", digits_dataset)
    other = build_classifier(configure(None, seed=9), digits_dataset.meta).net
    safetensors.torch.save_file(other.state_dict(), bundle.path / WEIGHTS_FILE)
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed since"):
        load(configure(bundle.path), digits_dataset)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path, digits_dataset: Dataset) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        load(configure(tmp_path), digits_dataset)
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        load(configure(tmp_path / "none.pth"), digits_dataset)


def test_a_bundle_for_other_classes_leaves_the_last_layer_random(
    tmp_path: Path, digits_dataset: Dataset
) -> None:
    bundle = net_bundle(tmp_path / "warm", digits_dataset)
    names = digits_dataset.meta.class_names[:4]
    meta = digits_dataset.meta.model_copy(update={"class_names": names})
    config = configure(bundle.path)
    net = build_classifier(config, meta).net
    fresh = net.state_dict()["fc2.weight"].clone()
    told = load_pretrained(net, config, meta)
    assert told.random == ("fc2.weight", "fc2.bias")
    assert torch.equal(net.state_dict()["fc2.weight"], fresh)


def test_a_bundle_of_another_network_is_refused_by_tensor(
    tmp_path: Path, digits_dataset: Dataset
) -> None:
    bundle = net_bundle(tmp_path / "warm", digits_dataset)
    with pytest.raises(CheckpointError, match=r"warm has a tensor conv1\.\w+; resnet has none of"):
        load(configure(bundle.path, "resnet20"), digits_dataset)


@pytest.mark.parametrize(
    ("reference", "pinned", "seed"),
    [
        ("registry:net", "registry:net@1", 1),
        ("registry:net@2", "registry:net@2", 2),
        ("registry:net:2", "registry:net@2", 2),
        ("registry:net@champion", "registry:net@1", 1),
    ],
)
def test_the_registry_gives_a_versions_weights(
    reference: str, pinned: str, seed: int, registry: Registry, digits_dataset: Dataset
) -> None:
    assert pin_pretrained(reference, lambda: registry) == pinned
    net, told = load(configure(reference), digits_dataset, lambda: registry)
    assert is_of_seed(net, seed, digits_dataset)
    assert told.source.name == reference
    assert told.source.sha256 == registry.resolve(f"net:{seed}").digest


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("registry:nut", NotFoundError, r"no model 'nut' in the registry; there are: net"),
        (
            "registry:net@9",
            NotFoundError,
            r"model 'net' has no version 9; versions: 2, 1 @champion",
        ),
        ("registry:net@best", NotFoundError, r"has no alias @best"),
        (
            "registry:",
            ConfigError,
            r"pretrained=registry:: expected registry:MODEL, registry:MODEL@",
        ),
        ("registry:net@1@2", ConfigError, r"expected registry:MODEL"),
    ],
)
def test_what_the_registry_does_not_have_is_one_line(
    reference: str, kind: type[UserError], message: str, registry: Registry, digits_dataset: Dataset
) -> None:
    with pytest.raises(kind, match=message) as caught:
        pin_pretrained(reference, lambda: registry)
    assert "\n" not in str(caught.value)
    with pytest.raises(kind, match=message):
        load(configure(reference), digits_dataset, lambda: registry)


def test_only_references_ask_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Registry:
        raise AssertionError("asked")

    monkeypatch.chdir(tmp_path)
    assert pin_pretrained("torchvision", refuse) == "torchvision"
    assert pin_pretrained("weights.pth", refuse) == str(tmp_path / "weights.pth")
    with pytest.raises(AssertionError):
        pin_pretrained("registry:net", refuse)
