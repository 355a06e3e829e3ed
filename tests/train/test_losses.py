"""Losses against torch's own and by hand."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.errors import ConfigError
from train.config import CrossEntropyConfig, FocalConfig, LossConfig, MseConfig
from train.losses import build_loss

COUNTS = (10, 30, 60)
CONFIGS: list[LossConfig] = [
    CrossEntropyConfig(label_smoothing=0.1),
    MseConfig(),
    FocalConfig(gamma=1.5),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass
class Mix:
    labels: Tensor
    share: Tensor


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 2, 1, 0, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5)])
def test_cross_entropy_is_torchs(
    logits: Tensor, labels: Tensor, smoothing: float, weights: tuple[float, ...] | None
) -> None:
    loss = build_loss(CrossEntropyConfig(label_smoothing=smoothing, class_weights=weights), COUNTS)
    # The mean of these weights over 10, 30 and 60 images is 1.
    torchs = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, labels, torchs, label_smoothing=smoothing, reduction="sum")
    assert loss(logits, labels) == pytest.approx(expected.item(), rel=1e-6)


def test_mse_is_torchs_on_one_hot_labels(logits: Tensor, labels: Tensor) -> None:
    expected = F.mse_loss(logits, F.one_hot(labels, 3).float(), reduction="sum") / 3
    assert build_loss(MseConfig(), COUNTS)(logits, labels) == pytest.approx(expected.item())


def test_focal_is_its_formula(logits: Tensor, labels: Tensor) -> None:
    p = logits.softmax(1)[torch.arange(7), labels]
    expected = (-((1 - p) ** 2) * p.log()).sum()
    loss = build_loss(FocalConfig(gamma=2.0), COUNTS)
    assert loss(logits, labels) == pytest.approx(expected.item(), rel=1e-5)


def test_focal_without_gamma_is_cross_entropy(logits: Tensor, labels: Tensor) -> None:
    focal = build_loss(FocalConfig(gamma=0.0), COUNTS)(logits, labels)
    assert focal == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_of_a_certain_answer_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = build_loss(FocalConfig(gamma=gamma), COUNTS)(logits, torch.tensor([0]))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_batch_is_the_sum_of_its_images(
    config: LossConfig, logits: Tensor, labels: Tensor
) -> None:
    loss = build_loss(config, COUNTS)
    parts = [loss(logits[[i]], labels[[i]]) for i in range(7)]
    assert loss(logits, labels) == pytest.approx(sum(part.item() for part in parts), rel=1e-5)
    assert loss(logits, labels).shape == ()


@pytest.mark.parametrize("config", CONFIGS)
def test_blended_images_count_for_both_labels(
    config: LossConfig, logits: Tensor, labels: Tensor
) -> None:
    loss = build_loss(config.model_copy(update={"class_weights": (1.0, 2.0, 3.0)}), COUNTS)
    mix = Mix(labels.flip(0), torch.linspace(0, 1, 7))
    expected = sum(
        float(share) * loss(logits[[i]], labels[[i]])
        + float(1 - share) * loss(logits[[i]], mix.labels[[i]])
        for i, share in enumerate(mix.share)
    )
    assert loss(logits, labels, mix) == pytest.approx(float(expected), rel=1e-5)


def test_blended_cross_entropy_is_torchs_of_soft_labels(logits: Tensor, labels: Tensor) -> None:
    mix = Mix(labels.flip(0), torch.linspace(0, 1, 7))
    share = mix.share[:, None]
    soft = share * F.one_hot(labels, 3) + (1 - share) * F.one_hot(mix.labels, 3)
    expected = F.cross_entropy(logits, soft, label_smoothing=0.1, reduction="sum")
    assert build_loss(CONFIGS[0], COUNTS)(logits, labels, mix) == pytest.approx(expected.item())


@pytest.mark.parametrize("kind", [CrossEntropyConfig, MseConfig, FocalConfig])
@pytest.mark.parametrize("weights", ["balanced", (3.0, 1.0, 2.0)])
def test_the_mean_weight_of_training_images_is_one(kind: Any, weights: Any) -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    logits = torch.randn(3, generator=torch.Generator().manual_seed(1)).expand(100, 3)
    plain = build_loss(kind(), COUNTS)
    weighted = build_loss(kind(class_weights=weights), COUNTS)
    image = [
        (weighted(logits[:1], torch.tensor([c])) / plain(logits[:1], torch.tensor([c]))).item()
        for c in range(3)
    ]
    assert sum(count * one for count, one in zip(COUNTS, image, strict=True)) == pytest.approx(100)
    if weights == "balanced":
        assert image == pytest.approx([100 / 3 / count for count in COUNTS])
        assert weighted(logits, labels) == pytest.approx(
            sum(100 / 3 * plain(logits[:1], torch.tensor([c])).item() for c in range(3)), rel=1e-5
        )
    else:
        assert image == pytest.approx([3 * image[1], image[1], 2 * image[1]])


def test_a_class_without_training_images_weighs_nothing(logits: Tensor) -> None:
    loss = build_loss(CrossEntropyConfig(class_weights="balanced"), (10, 0, 30))
    assert loss(logits[:1], torch.tensor([1])) == 0
    assert loss(logits, torch.tensor([0, 0, 2, 2, 0, 2, 2])).isfinite()


def test_weights_must_fit_the_classes() -> None:
    with pytest.raises(
        ConfigError, match="class_weights has 2 numbers; the data set has 3 classes"
    ):
        build_loss(CrossEntropyConfig(class_weights=(1.0, 2.0)), COUNTS)
    with pytest.raises(ConfigError, match="no training image counts"):
        build_loss(CrossEntropyConfig(class_weights=(0.0, 1.0)), (10, 0))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_must_be_numbers_from_zero_on(weight: float) -> None:
    with pytest.raises(ConfigError, match="class_weights"):
        CrossEntropyConfig.decode({"class_weights": (1.0, weight)}, "test")
