"""Hardware options: what has no effect is said, and what has one changes no more than it should."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.dataset import Dataset
from cluster.errors import ConfigError
from cluster.events import NullSink
from cluster.store import Folder
from train.comm import Alone
from train.config import HardwareConfig, TrainConfig
from train.hardware import faster_memory_format, lay_out, set_memory_format, settle
from train.loop import Trainer
from train.models.classifier import build_classifier
from train.recipes import get_recipe
from train.weights import weights_sha256

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def short(**changes: Any) -> TrainConfig:
    return get_recipe("digits").with_changes({"epochs": 1, **changes}, "test")


def train(config: TrainConfig, dataset: Dataset, folder: Path, device: torch.device) -> Trainer:
    trainer = Trainer(config, dataset, Alone(), device, Folder(folder), NullSink())
    trainer.run()
    return trainer


@pytest.mark.parametrize(
    ("option", "value", "effective", "note"),
    [
        ("precision", "fp16", "fp32", "precision=fp16 has no effect: CPUs train in fp32 or bf16"),
        ("sync_batchnorm", True, False, "sync_batchnorm=true has no effect: it is for GPUs"),
        ("shard_optimizer", True, False, "shard_optimizer=true has no effect: there is one worker"),
        ("compression", "bf16", "none", "compression=bf16 has no effect: there is one worker"),
        ("tf32", False, True, "tf32=false has no effect: it is for GPUs"),
        (
            *("shared_memory", False, True),
            "shared_memory=false has no effect: it is for several workers on CPUs",
        ),
    ],
)
def test_an_option_without_effect_is_said_and_left_out(
    option: str, value: Any, effective: Any, note: str
) -> None:
    hardware, notes = settle(short(hardware={option: value}), CPU, world=1)
    assert getattr(hardware, option) == effective
    assert notes == [f"hardware.{note}"]


def test_an_optimizer_without_a_fused_step_is_said() -> None:
    config = short(optim={"name": "muon"}, hardware={"fused": False})
    assert settle(config, CPU, world=2)[1] == [
        "hardware.fused=false has no effect: PyTorch has no fused muon"
    ]
    assert settle(short(hardware={"fused": False}), CPU, world=2)[1] == []


def test_what_an_exact_run_does_not_do_is_said() -> None:
    wide = short(exact={}, resources={"cpus_per_worker": 3})
    (threads,) = settle(wide, CPU, world=1)[1]
    assert threads.startswith("resources.cpus_per_worker=3 has no effect but to reserve them")
    (bits,) = settle(short(exact={}), CUDA, world=1)[1]
    assert bits.startswith("exact: the same bits are promised on CPUs only")
    assert settle(short(exact={}), CPU, world=1)[1] == []


def test_winograd_is_for_cpus() -> None:
    config = short(hardware={"winograd": False})
    assert settle(config, CPU, world=1) == (HardwareConfig(winograd=False), [])
    hardware, notes = settle(config, CUDA, world=1)
    assert hardware.winograd
    assert notes == [
        "hardware.winograd=false has no effect: it is for CPUs, without hardware.compile"
    ]


def test_defaults_say_nothing() -> None:
    config = short()
    assert settle(config, CPU, world=1) == (HardwareConfig(), [])
    assert settle(config, CPU, world=2) == (HardwareConfig(), [])


def test_an_exact_run_exchanges_every_bit() -> None:
    config = short(exact={}, hardware={"compression": "bf16"})
    hardware, notes = settle(config, CPU, world=2)
    assert hardware.compression == "none"
    assert "exchanges every bit" in notes[0]


def test_compile_without_a_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"compile=true needs a C\+\+ compiler"):
        settle(short(hardware={"compile": True}), CPU, world=1)


@pytest.mark.parametrize("winograd", [True, False])
def test_winograd_is_used_if_it_is_asked_for(
    digits_dataset: Dataset, tmp_path: Path, winograd: bool
) -> None:
    wide = short(model={"name": "resnet", "width": 32}, hardware={"winograd": winograd})
    trainer = Trainer(wide, digits_dataset, Alone(), CPU, Folder(tmp_path), NullSink())
    assert any("forward" in vars(layer) for layer in trainer.net.modules()) == winograd


def test_the_memory_format_is_chosen_once_and_kept(
    digits_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(
        model={"name": "resnet"},
        hardware={"memory_format": "auto"},
        checkpoint={"every_s": None, "every_steps": 5},
    )
    trainer = train(config, digits_dataset, tmp_path, CPU)
    chosen = trainer.state.memory_format
    assert chosen in ("contiguous", "channels_last")
    other = {"contiguous": "channels_last", "channels_last": "contiguous"}[chosen]
    monkeypatch.setattr("train.setup.faster_memory_format", lambda *_: other)
    again = train(config.with_changes({"epochs": 2}, "test"), digits_dataset, tmp_path, CPU)
    assert again.state.memory_format == chosen


def test_timing_leaves_the_network_as_it_is(digits_dataset: Dataset) -> None:
    classifier = build_classifier(short(model={"name": "resnet"}), digits_dataset.meta)
    before = weights_sha256(classifier)
    images = torch.tensor(digits_dataset.split("train").take(slice(0, 16)))
    assert faster_memory_format(classifier, images) in ("contiguous", "channels_last")
    assert weights_sha256(classifier) == before
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_both_memory_formats_compute_the_same(digits_dataset: Dataset) -> None:
    images = torch.tensor(digits_dataset.split("train").take(slice(0, 16)))
    config = short(model={"name": "resnet", "width": 8})
    outputs = []
    for layout in ("contiguous", "channels_last"):
        classifier = build_classifier(config, digits_dataset.meta).eval()
        set_memory_format(classifier, layout)
        outputs.append(classifier(lay_out(images, layout)))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(
    "hardware",
    [
        {"memory_format": "channels_last"},
        {"fused": False},
        {"activation_checkpointing": True},
        {"precision": "bf16"},
    ],
)
def test_an_option_learns_what_the_defaults_learn(
    digits_dataset: Dataset, tmp_path: Path, hardware: dict[str, Any]
) -> None:
    model = {"name": "resnet", "width": 8}
    plain = train(short(model=model), digits_dataset, tmp_path / "plain", CPU)
    other = train(short(model=model, hardware=hardware), digits_dataset, tmp_path / "other", CPU)
    first, second = (one.state.history[-1]["train_loss"] for one in (plain, other))
    assert second == pytest.approx(first, rel=0.05)


@needs_gpu
@pytest.mark.parametrize(
    "hardware",
    [
        {"precision": "fp16"},
        {"precision": "bf16"},
        {"tf32": False},
        {"memory_format": "channels_last"},
        {"compile": True},
    ],
)
def test_a_gpu_learns(digits_dataset: Dataset, tmp_path: Path, hardware: dict[str, Any]) -> None:
    config = short(model={"name": "resnet"}, hardware=hardware, epochs=5)
    trainer = train(config, digits_dataset, tmp_path, CUDA)
    assert trainer.state.history[-1]["val_accuracy"] > 0.9
