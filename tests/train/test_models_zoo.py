"""Networks of torchvision and timm on any data, and weights that were trained on other data."""

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torchvision.models import SqueezeNet1_1_Weights
from torchvision.models.vision_transformer import VisionTransformer

from cluster.dataset import ChannelStatistics, DatasetMeta
from cluster.errors import CheckpointError, ConfigError
from cluster.images import ImageSpec
from train.config import TrainConfig
from train.models.check import check_classifier
from train.models.choice import choose_model, parse_model
from train.models.classifier import Classifier, build_classifier
from train.models.layers import fit_channels
from train.models.zoo import rename_published, torchvision_names
from train.pretrained import load_pretrained


def meta(channels: Literal[1, 3] = 1, side: int = 32, classes: int = 7) -> DatasetMeta:
    """A data set without images."""
    return DatasetMeta(
        name="none",
        version=1,
        source="none",
        created_at="2026-01-01T00:00:00+00:00",
        image=ImageSpec(height=side, width=side, channels=channels),
        class_names=tuple(f"class {index}" for index in range(classes)),
        statistics=ChannelStatistics(mean=(0.4,) * channels, std=(0.2,) * channels),
        splits={},
        seed=0,
        digest="0" * 64,
    )


def configure(model: str, pretrained: str | Path | None = None, **fields: Any) -> TrainConfig:
    """A configuration as ``--model`` makes it."""
    values = {"model": {**parse_model(model), **fields}, "recipe": "test", "data": "none"}
    return TrainConfig.decode(
        {**values, "pretrained": None if pretrained is None else str(pretrained)}, "test"
    )


def build(config: TrainConfig, data: DatasetMeta) -> Classifier:
    classifier = build_classifier(config, data)
    check_classifier(classifier, config.model, data, training=True)
    return classifier


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [
        ("resnet18", 1, 8),
        ("mobilenet_v3_small", 1, 32),
        ("shufflenet_v2_x0_5", 1, 32),
        ("squeezenet1_1", 1, 32),
        ("mnasnet0_5", 3, 32),
        ("regnet_y_400mf", 1, 32),
        ("googlenet", 1, 32),
        ("swin_t", 1, 32),
        ("timm:resnet10t", 1, 32),
        ("timm:vit_tiny_patch16_224", 1, 32),
    ],
)
def test_any_network_takes_any_channels_and_classes(
    name: str, channels: Literal[1, 3], side: int
) -> None:
    build(configure(name), meta(channels, side))


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("alexnet", 32, r"alexnet fails on images of 1x32x32: it takes 63x63 or larger"),
        ("vit_b_16", 28, r"square images of a multiple of 16 pixels; these are 28x28"),
        ("maxvit_t", 64, r"square images of a multiple of 224 pixels"),
        ("timm:resnet18x", 32, r"timm has no model 'resnet18x'; near it are: resnet18"),
        ("resnet19", 32, r"no model 'resnet19'.*near it are: resnet1"),
        ("ftp:resnet18", 32, r"--model ftp:resnet18: expected net, resnet"),
        ("my_net.py", 32, r"name the function or class too: my_net.py:FACTORY"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, side: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(configure(name), meta(1, side))
    assert "\n" not in str(caught.value)


def test_a_second_name_for_the_network_is_refused_and_capitals_are_read() -> None:
    with pytest.raises(ConfigError, match=r"--set model=net: the network is named by --model res"):
        choose_model("resnet", "net")
    assert parse_model("NET.ONNX") == {"name": "onnx", "path": "NET.ONNX"}


def test_options_reach_the_builder_and_unknown_ones_are_named() -> None:
    net: Any = build_classifier(
        configure("mobilenet_v3_small", options={"dropout": 0.7}), meta()
    ).net
    assert net.classifier[2].p == 0.7
    for options, message in (
        ({"drop": 1}, "unexpected keyword"),
        ({"weights": 1}, "by the data"),
        ({"groups": 0}, "groups=0"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_classifier(configure("resnet18", options=options), meta())


def test_the_small_stem_sees_every_pixel() -> None:
    net: Any = build(configure("resnet18", stem="small"), meta()).net
    assert net.layer1(net.maxpool(net.conv1(torch.zeros(1, 1, 32, 32)))).shape[2:] == (32, 32)
    with pytest.raises(ConfigError, match="ResNets and their kin, not squeezenet1_1"):
        build_classifier(configure("squeezenet1_1", stem="small"), meta())


def test_torchvision_has_the_classifiers_that_the_guide_names() -> None:
    assert len(torchvision_names()) >= 80
    assert {"resnet18", "vit_b_16", "convnext_tiny"} <= set(torchvision_names())
    assert not any("segmentation" in name or "r3d" in name for name in torchvision_names())


def test_a_grey_image_gives_what_it_gave_in_colours() -> None:
    conv, grey = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(1, 4, 3, bias=False)
    grey.load_state_dict({"weight": fit_channels(conv.weight, 1)})
    image = torch.randn(2, 1, 8, 8)
    assert torch.allclose(grey(image), conv(image.expand(2, 3, 8, 8)), atol=1e-5)
    assert fit_channels(conv.weight, 6).shape == (4, 6, 3, 3)
    assert torch.allclose(fit_channels(conv.weight, 6).sum(1), conv.weight.sum(1), atol=1e-5)


def test_pretrained_weights_fit_other_channels_and_classes(tmp_path: Path) -> None:
    file = tmp_path / "colour.pth"
    colour = build_classifier(configure("resnet18"), meta(3, classes=10)).net
    torch.save({"state_dict": colour.state_dict(), "epoch": 9}, file)
    config = configure("resnet18", file)
    net: Any = build_classifier(config, meta(1, classes=7)).net
    fresh = net.fc.weight.detach().clone()
    loaded = load_pretrained(net, config, meta(1, classes=7))
    assert str(loaded) == (
        f"{file.name}: 120 of 122 tensors loaded; fitted to the images: conv1.weight; "
        "random: fc.weight, fc.bias"
    )
    own: Any = colour
    assert torch.equal(net.layer4[1].conv2.weight, own.layer4[1].conv2.weight)
    assert torch.equal(net.conv1.weight, own.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(net.fc.weight, fresh)


def test_pretrained_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save(build_classifier(configure("net"), meta(1, 16)).net.state_dict(), file)
    config = configure("net", file)
    with pytest.raises(CheckpointError, match=r"fc1.weight is .*only the first and the last layer"):
        load_pretrained(build_classifier(config, meta()).net, config, meta())
    config = configure("resnet", file)
    with pytest.raises(CheckpointError, match=r"has a tensor conv1.weight; resnet has none"):
        load_pretrained(build_classifier(config, meta()).net, config, meta())


def test_only_the_last_layer_may_have_other_classes(tmp_path: Path) -> None:
    def net(gate: int, *heads: int) -> nn.Module:
        layers = {"gate": nn.Linear(9, gate), "body": nn.Linear(9, 8)}
        return nn.ModuleDict(layers | {f"head{n}": nn.Linear(8, n) for n in heads})

    torch.save(net(20, 7).state_dict(), tmp_path / "gate.pth")
    with pytest.raises(CheckpointError, match=r"gate.weight is \(20, 9\), the model's is \(7, 9\)"):
        load_pretrained(net(7, 7), configure("net", tmp_path / "gate.pth"), meta())
    torch.save(net(7).state_dict(), tmp_path / "headless.pth")
    loaded = load_pretrained(net(7, 7), configure("net", tmp_path / "headless.pth"), meta())
    assert loaded.random == ("head7.weight", "head7.bias")


def test_positions_of_a_vision_transformer_are_interpolated(tmp_path: Path) -> None:
    def small(side: int) -> nn.Module:
        net: nn.Module = VisionTransformer(side, 16, 1, 2, 8, 16, num_classes=7)
        return net

    torch.save(small(64).state_dict(), tmp_path / "64.pth")
    net = small(32)
    loaded = load_pretrained(net, configure("vit_b_16", tmp_path / "64.pth"), meta(3))
    assert loaded.random == ()


def test_older_names_of_published_weights_are_understood() -> None:
    tensor = torch.zeros(1)
    old = {"features.denseblock1.denselayer2.norm.1.weight": tensor, "AuxLogits.fc.bias": tensor}
    assert list(rename_published(old)) == ["features.denseblock1.denselayer2.norm1.weight"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_a_network_published_weights_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = configure("squeezenet1_1", "torchvision")
    net = build_classifier(config, meta(3)).net
    with pytest.raises(ConfigError, match=r"cannot be downloaded .*--pretrained FILE"):
        load_pretrained(net, config, meta(3))
    config = configure("net", "torchvision")
    with pytest.raises(ConfigError, match="models of torchvision only, not for net"):
        load_pretrained(build_classifier(config, meta(3)).net, config, meta(3))


def test_a_download_is_told_and_a_short_one_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    published = SqueezeNet1_1_Weights.DEFAULT.value
    short = tmp_path / published.url.rpartition("/")[2]
    short.write_bytes(b"the beginning")
    monkeypatch.setattr(published, "url", short.as_uri())
    config = configure("squeezenet1_1", "torchvision")
    net = build_classifier(config, meta(3)).net
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"cannot be downloaded \(invalid hash value"):
        load_pretrained(net, config, meta(3), said.append)
    assert said == [f"downloading {short.as_uri()}"]
    cached = tmp_path / "home" / "hub" / "checkpoints" / short.name
    cached.write_bytes(b"the beginning")
    with pytest.raises(ConfigError, match=rf"{cached} is damaged .*remove it"):
        load_pretrained(net, config, meta(3), said.append)
    assert len(said) == 1
    assert capsys.readouterr().out == ""


def test_without_timm_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'raybridge\[timm\]'"):
        build_classifier(configure("timm:resnet10t"), meta())


@pytest.mark.parametrize(
    ("choice", "black", "white"),
    [("none", 0, 1), ("half", -1, 1), ("bytes", 0, 255), ("dataset", -2, 3)],
)
def test_pixels_are_normalised_as_was_asked(choice: str, black: float, white: float) -> None:
    config = configure("net").model_copy(update={"normalize": choice})
    built = build_classifier(config, meta())
    classifier = Classifier(nn.Identity(), built.normalization)
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    assert classifier(ends).flatten().tolist() == pytest.approx([black, white], abs=1e-5)


def test_a_normalisation_of_other_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match="imagenet is of 3 and 3 channels; the images have 1"):
        build_classifier(configure("net").model_copy(update={"normalize": "imagenet"}), meta())
