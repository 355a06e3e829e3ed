"""The network of airbench: its published form, its whitening layer, its export."""

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from cluster.dataset import ChannelStatistics, Split
from cluster.errors import ConfigError
from cluster.runtime import OnnxRuntimeSession
from train.config import AirbenchConfig, NetConfig
from train.export import export_onnx
from train.models import whitening
from train.models.airbench import AirbenchNet
from train.models.classifier import Classifier, num_parameters
from train.models.net import Net
from train.models.whitening import initialize_from_data

SMALL = AirbenchConfig(widths=(8, 16, 16))


def digits(channels: int = 1) -> Split:
    """Scans at 16x16; in colours, each has one of its own."""
    scans = load_digits()
    images = np.kron(scans.images, np.ones((2, 2)))[:, None] * 15
    if channels > 1:
        images = images * np.random.default_rng(0).uniform(0.2, 1, (len(images), channels, 1, 1))
    return Split(images.astype(np.uint8), scans.target.astype(np.int64))


def classifier(split: Split, config: AirbenchConfig = SMALL) -> Classifier:
    """A network for the split's images, which are normalised to mean 0 and deviation 1."""
    pixels = split.images / 255
    mean, std = (
        tuple(values.tolist()) for values in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)))
    )
    torch.manual_seed(0)
    shape: tuple[int, int, int] = split.images.shape[1:]
    return Classifier(AirbenchNet(config, shape, 10), ChannelStatistics(mean=mean, std=std))


def airbench(made: Classifier) -> AirbenchNet:
    assert isinstance(made.net, AirbenchNet)
    return made.net


def published(weights: dict[str, Tensor], x: Tensor, config: AirbenchConfig) -> Tensor:
    """The forward pass of airbench94 and airbench96, in training, by their text."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, None, weights[f"{name}.bias"], True, eps=1e-5)

    x = F.gelu(F.conv2d(x, weights["whiten.weight"], weights["whiten.bias"]))
    for group in ("groups.0", "groups.1", "groups.2"):
        x = F.conv2d(x, weights[f"{group}.conv1.weight"], padding="same")
        x = F.gelu(norm(F.max_pool2d(x, 2), f"{group}.norm1"))
        first = x
        x = norm(F.conv2d(x, weights[f"{group}.conv2.weight"], padding="same"), f"{group}.norm2")
        if config.depth == 3:
            x = F.conv2d(F.gelu(x), weights[f"{group}.conv3.weight"], padding="same")
            x = norm(x, f"{group}.norm3") + first
        x = F.gelu(x)
    x = F.max_pool2d(x, 3).flatten(1)
    return x @ weights["head.weight"].T * config.scale


@pytest.mark.parametrize("depth", [2, 3])
def test_the_network_is_the_published_one(depth: Literal[2, 3]) -> None:
    config = SMALL.model_copy(update={"depth": depth, "scale": 0.3})
    net = AirbenchNet(config, (3, 32, 32), 10)
    images = torch.randn(4, 3, 32, 32)
    expected = published(dict(net.named_parameters()), images, config)
    assert torch.allclose(net(images), expected, atol=1e-5)


def test_the_published_widths_have_the_published_parameters() -> None:
    net = AirbenchNet(AirbenchConfig(), (3, 32, 32), 10)
    kernels = 24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256
    norms = 2 * 2 * (64 + 256 + 256)
    assert num_parameters(net) == 24 * 12 + 24 + 9 * kernels + norms + 2560
    wide = AirbenchNet(AirbenchConfig(widths=(128, 512, 512), depth=3), (3, 32, 32), 10)
    assert [group.norm3.num_features for group in wide.groups] == [128, 512, 512]  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 17, 33), (5, 64, 28), (1, 28, 28)])
def test_it_takes_any_size_and_any_channels(shape: tuple[int, int, int]) -> None:
    net = AirbenchNet(SMALL, shape, 7)
    assert net.whiten.out_channels == 8 * shape[0]
    assert net(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("size", [(15, 16), (16, 8)])
def test_smaller_images_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"airbench takes images of 16x16 .*{size[0]}x{size[1]}"):
        AirbenchNet(SMALL, (3, *size), 10)


def test_convolutions_begin_as_identity() -> None:
    net = AirbenchNet(SMALL, (1, 16, 16), 10)
    x = torch.randn(2, 8, 7, 7)
    widening = net.groups[1].conv1
    with torch.no_grad():
        y = widening(x)  # type: ignore[operator]
    assert torch.equal(y[:, :8], x)
    assert float(y[:, 8:].abs().mean()) > 0.01


def test_the_scale_changes_no_first_logits() -> None:
    split = digits()
    nets = [classifier(split, SMALL.model_copy(update={"scale": s})) for s in (1 / 9, 1 / 256)]
    images = torch.from_numpy(split.images[:20])
    small, large = (net(images) for net in nets)
    assert torch.allclose(small, large, atol=1e-6)
    ratio = airbench(nets[1]).head.weight / airbench(nets[0]).head.weight
    assert torch.allclose(ratio, torch.tensor(256 / 9))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_whitens_patches_of_training_images(channels: int) -> None:
    split = digits(channels)
    made = classifier(split)
    net = airbench(made)
    initialize_from_data(net, made, split)
    normal = (torch.from_numpy(split.images).double() - made.mean) / made.std
    patches = F.unfold(normal, 2).transpose(0, 1).flatten(1)
    filters = net.whiten.weight.detach().double().flatten(1)
    half = 4 * channels
    assert torch.equal(filters[:half], -filters[half:])
    outputs = filters[:half] @ patches
    covariance = outputs @ outputs.T / outputs.shape[1]
    variances = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1]).flip(0)
    expected = torch.diag(variances / (variances + 5e-4))
    assert torch.allclose(covariance, expected, atol=1e-5)
    assert float(expected.diagonal().max()) > 0.99
    assert not net.whiten.bias.any()  # type: ignore[union-attr]


def test_whitening_is_the_same_to_the_bit_however_it_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = digits(3)
    split = Split(whole.images[:200], whole.labels[:200])
    threads = torch.get_num_threads()
    found = []
    for seed, at_once, used in ((0, 10_000_000, 1), (1, 50_000, 2)):
        made = classifier(split)
        torch.manual_seed(seed)
        monkeypatch.setattr(whitening, "_VALUES_AT_ONCE", at_once)
        torch.set_num_threads(used)
        initialize_from_data(made.net, made, split)
        found.append(airbench(made).whiten.weight)
    torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_the_sign_of_a_filter_is_no_accident() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    variances = torch.linspace(1, 12, 12, dtype=torch.float64)
    filters = whitening.whitening_filters(rotation @ torch.diag(variances) @ rotation.T)
    for row in filters:
        large = row[row.abs() >= row.abs().max() / 2]
        assert large[0] > 0


def test_only_the_first_5000_images_are_seen() -> None:
    split = digits()
    many = Split(np.tile(split.images, (3, 1, 1, 1)), np.tile(split.labels, 3))
    changed = Split(many.images.copy(), many.labels)
    changed.images[5000:] = 255
    found = []
    for one in (many, changed):
        made = classifier(many)
        initialize_from_data(made.net, made, one)
        found.append(airbench(made).whiten.weight)
    assert torch.equal(*found)


def test_other_networks_take_nothing_from_data() -> None:
    split = digits()
    net = Net(NetConfig(), (1, 16, 16), 10)
    made = Classifier(net, ChannelStatistics(mean=(0.5,), std=(0.5,)))
    before = net.conv1.weight.detach().clone()
    initialize_from_data(net, made, split)
    assert torch.equal(net.conv1.weight, before)


def test_it_learns_digits_and_leaves_alone_what_is_frozen() -> None:
    split = digits()
    made = classifier(split, SMALL.model_copy(update={"widths": (16, 32, 32)}))
    net = airbench(made)
    initialize_from_data(net, made, split)
    before = {name: one.detach().clone() for name, one in net.named_parameters()}
    trained = [one for one in net.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.5, momentum=0.85, nesterov=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=4 * 14)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    for _ in range(4):
        for rows in torch.randperm(1400).split(100):
            optimizer.zero_grad()
            F.cross_entropy(made(images[rows]), labels[rows], label_smoothing=0.2).backward()
            optimizer.step()
            schedule.step()
    made.eval()
    with torch.no_grad():
        accuracy = (made(images[1400:]).argmax(1) == labels[1400:]).float().mean()
    assert accuracy > 0.85
    same = {name for name, one in net.named_parameters() if torch.equal(one, before[name])}
    assert same == set(net.frozen_after(0))
    assert {one for one in same if "norm" not in one} == {"whiten.weight"}


def test_a_batch_of_equal_images_gives_no_boundless_gradients() -> None:
    made = classifier(digits())
    made(torch.full((8, 1, 16, 16), 90, dtype=torch.uint8)).square().sum().backward()
    gradients = [one.grad for one in made.parameters() if one.grad is not None]
    assert all(float(gradient.abs().max()) < 1e3 for gradient in gradients)


def test_the_whitening_bias_is_trained_for_some_epochs() -> None:
    net = AirbenchNet(SMALL.model_copy(update={"whiten_epochs": 2}), (1, 16, 16), 10)
    assert ["whiten.bias" in net.frozen_after(epoch) for epoch in range(4)] == [
        *(False, False),
        *(True, True),
    ]
    never = AirbenchNet(SMALL.model_copy(update={"whiten_epochs": 0}), (1, 16, 16), 10)
    assert not never.whiten.bias.requires_grad  # type: ignore[union-attr]


def test_its_graph_takes_any_batch_and_gives_the_same() -> None:
    split = digits(3)
    config = SMALL.model_copy(update={"depth": 3, "dropout": 0.4})
    made = classifier(split, config)
    initialize_from_data(made.net, made, split)
    made(torch.from_numpy(split.images[:200]))  # Running averages other than 0 and 1.
    made.eval()
    shape: tuple[int, int, int] = split.images.shape[1:]
    session = OnnxRuntimeSession(export_onnx(made, config, shape), 1)
    for batch in (1, 2, 7):
        images = split.images[:batch]
        with torch.no_grad():
            expected = made(torch.from_numpy(images)).numpy()
        assert np.abs(session.run(images) - expected).max() < 1e-4
