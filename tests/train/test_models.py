"""Networks, and the weights that other people's code wrote."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.dataset import ChannelStatistics, Dataset
from cluster.errors import CheckpointError, ConfigError
from cluster.images import ImageSpec
from train.config import (
    Activation,
    AirbenchConfig,
    ModelConfig,
    NetConfig,
    ResNetConfig,
    TorchvisionConfig,
    TrainConfig,
)
from train.models.choice import choose_model, parse_model
from train.models.classifier import Classifier, build_classifier, num_parameters
from train.models.net import Net
from train.models.resnet import BasicBlock, PadShortcut, ResNet
from train.models.scaling import base_model
from train.weights import load_state_dict, save_state_dict


class ArticleNet(nn.Module):
    """The network as the article prints it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 6 * 6, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = nn.functional.relu(x)
        x = self.conv2(x)
        x = nn.functional.relu(x)
        x = nn.functional.max_pool2d(x, 2)
        x = torch.flatten(x, 1)
        x = self.fc1(x)
        x = nn.functional.relu(x)
        x = self.fc2(x)
        return x


def test_weights_of_the_articles_own_code_load_and_give_its_answers(tmp_path: Path) -> None:
    article = ArticleNet()
    torch.save(article.state_dict(), tmp_path / "model.pth")
    net = Net(NetConfig(), (1, 16, 16), 10)
    load_state_dict(net, tmp_path / "model.pth")
    images = torch.randn(5, 1, 16, 16)
    assert torch.equal(net(images), article(images))


def test_our_weights_load_in_the_articles_own_code(tmp_path: Path) -> None:
    net = Net(NetConfig(), (1, 16, 16), 10)
    save_state_dict(net, tmp_path / "model.pth")
    article = ArticleNet()
    article.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    images = torch.randn(5, 1, 16, 16)
    assert torch.equal(net(images), article(images))


class Holder(nn.Module):
    """A network whose own names begin as those of a wrapper do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("kind", [Holder, lambda: nn.Linear(3, 2)])
def test_wrappers_are_taken_off_and_a_networks_own_names_are_not(
    kind: Callable[[], nn.Module], wrapper: str, tmp_path: Path
) -> None:
    net, other = kind(), kind()
    torch.save({wrapper + name: one for name, one in net.state_dict().items()}, tmp_path / "w.pth")
    load_state_dict(other, tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    save_state_dict(net, tmp_path / "own.pth")
    load_state_dict(other, tmp_path / "own.pth")


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(ArticleNet().state_dict(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"fc1.weight is \(128, 2304\), the model's is"):
        load_state_dict(Net(NetConfig(), (1, 28, 28), 10), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"has no tensor stem\.weight"):
        load_state_dict(ResNet(ResNetConfig(), (1, 16, 16), 10), tmp_path / "model.pth")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("unpickled",))


@pytest.mark.parametrize("content", [{"x": _Evil()}, [1, 2], {"x": 3}])
def test_files_of_other_things_than_tensors_are_refused(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        load_state_dict(Net(NetConfig(), (1, 16, 16), 10), tmp_path / "model.pth")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 16, 16), (3, 32, 32), (3, 33, 17), (1, 6, 6)])
@pytest.mark.parametrize("config", [NetConfig(), ResNetConfig()])
def test_networks_size_themselves(
    config: NetConfig | ResNetConfig, shape: tuple[int, int, int]
) -> None:
    kinds = {"net": Net, "resnet": ResNet}
    net = kinds[config.name](config, shape, 7)
    assert net(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(("name", "count"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_resnets_by_name_have_the_published_sizes(name: str, count: int) -> None:
    # He et al. 2016, table 6: 0.27 M and 0.85 M.
    config = ResNetConfig.model_validate(parse_model(name))
    assert num_parameters(ResNet(config, (3, 32, 32), 10)) == count
    # Projections in the shortcuts add 2,752 with their norms.
    projecting = config.model_copy(update={"shortcut": "projection"})
    assert num_parameters(ResNet(projecting, (3, 32, 32), 10)) == count + 2752


def test_models_by_name_take_further_settings() -> None:
    assert choose_model("resnet20", {"width": 32}) == {**parse_model("resnet20"), "width": 32}
    assert parse_model("airbench") == {"name": "airbench"}
    with pytest.raises(ConfigError, match=r"near it are: resnet20"):
        parse_model("resnet_20")


@pytest.mark.parametrize("side", [8, 7])
def test_the_padded_shortcut_takes_every_second_pixel_and_zeros(side: int) -> None:
    x = torch.arange(2.0 * side * side).reshape(1, 2, side, side)
    out = PadShortcut(3, 2)(x)
    half = (side + 1) // 2
    expected = torch.zeros(1, 5, half, half)
    for channel in range(2):
        for row in range(half):
            for column in range(half):
                expected[0, 1 + channel, row, column] = x[0, channel, 2 * row, 2 * column]
    assert torch.equal(out, expected)
    block = BasicBlock(2, 4, 2, "relu", "pad")
    nn.init.zeros_(block.bn2.weight)  # Only the shortcut is left.
    assert torch.equal(block(x)[:, 1:3], x[:, :, ::2, ::2])


@pytest.mark.parametrize("config", [NetConfig(dropout=0.5), ResNetConfig(dropout=0.5)])
def test_dropout_is_of_training_alone(config: NetConfig | ResNetConfig) -> None:
    kinds = {"net": Net, "resnet": ResNet}
    torch.manual_seed(0)
    net = kinds[config.name](config, (1, 16, 16), 10)
    torch.manual_seed(0)
    plain = kinds[config.name](config.model_copy(update={"dropout": 0.0}), (1, 16, 16), 10)
    images = torch.randn(4, 1, 16, 16)
    assert not torch.equal(net(images), net(images))
    net.eval()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net(images), plain.eval()(images))


def test_a_network_is_compared_with_its_default_widths() -> None:
    wide: list[ModelConfig] = [
        NetConfig(channels=(64, 128), hidden=256, activation="gelu"),
        ResNetConfig(width=64, blocks=(3, 3, 3), shortcut="pad"),
        AirbenchConfig(widths=(128, 512, 512), depth=3),
    ]
    assert [base_model(config) for config in wide] == [
        NetConfig(activation="gelu"),
        ResNetConfig(blocks=(3, 3, 3), shortcut="pad"),
        AirbenchConfig(depth=3),
    ]
    assert base_model(TorchvisionConfig(arch="resnet18")) is None


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("relu", lambda x: np.maximum(0, x)),
        ("tanh", lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x))),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    ],
)
def test_activations_are_the_articles_formulas(name: Activation, formula: object) -> None:
    net = Net(NetConfig(activation=name), (1, 8, 8), 3)
    x = np.linspace(-4, 4, 101)
    assert callable(formula)
    assert np.allclose(net.activation(torch.from_numpy(x)).numpy(), formula(x))


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "gelu"])
def test_the_activation_is_used(name: Activation) -> None:
    torch.manual_seed(0)
    net = Net(NetConfig(activation=name), (1, 8, 8), 3)
    images = torch.randn(4, 1, 8, 8)
    acts: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
        "relu": F.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "gelu": F.gelu,
    }
    act = acts[name]
    hidden = F.max_pool2d(act(net.conv2(act(net.conv1(images)))), 2).flatten(1)
    assert torch.allclose(net(images), net.fc2(act(net.fc1(hidden))))


def test_the_classifier_normalises_bytes() -> None:
    statistics = ChannelStatistics(mean=(0.25, 0.5, 0.75), std=(0.1, 0.2, 0.3))
    classifier = Classifier(nn.Identity(), statistics)
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean = torch.tensor(statistics.mean).view(1, 3, 1, 1)
    std = torch.tensor(statistics.std).view(1, 3, 1, 1)
    assert torch.allclose(classifier(images), (images / 255 - mean) / std, atol=1e-5)


def test_first_weights_depend_on_the_seed_alone(digits_dataset: Dataset) -> None:
    config = TrainConfig(recipe="test", data="digits")
    torch.manual_seed(5)
    first = build_classifier(config.model_copy(update={"seed": 1}), digits_dataset.meta)
    torch.manual_seed(6)
    again = build_classifier(config.model_copy(update={"seed": 1}), digits_dataset.meta)
    other = build_classifier(config.model_copy(update={"seed": 2}), digits_dataset.meta)
    assert torch.equal(first.net.conv1.weight, again.net.conv1.weight)  # type: ignore[arg-type, union-attr]
    assert not torch.equal(first.net.conv1.weight, other.net.conv1.weight)  # type: ignore[arg-type, union-attr]


def test_images_too_small_for_the_network_are_refused(digits_dataset: Dataset) -> None:
    tiny = digits_dataset.meta.model_copy(
        update={"image": ImageSpec(height=5, width=5, channels=1)}
    )
    with pytest.raises(ConfigError, match=r"model.name=net .*5"):
        build_classifier(TrainConfig(recipe="test", data="digits"), tiny)
