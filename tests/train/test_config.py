"""Configuration and recipes: what is accepted, and what the messages say."""

import json
from pathlib import Path

import pytest
from harness import RunCli
from inside import RunInside

from cluster.config import parse_overrides, read_config_file
from cluster.errors import ConfigError
from train.config import NetConfig, ResNetConfig, SgdConfig, TrainConfig
from train.recipes import RECIPES, get_recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_are_valid_and_survive_json(name: str) -> None:
    config = get_recipe(name)
    assert config.recipe == name
    assert TrainConfig.decode(json.loads(config.model_dump_json()), "again") == config


def test_an_unknown_recipe_suggests_a_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean fashion_mnist"):
        get_recipe("fashion-mnst")


def override(*pairs: str) -> TrainConfig:
    return get_recipe("digits").with_changes(parse_overrides(pairs), "--set")


def test_overrides_reach_nested_fields() -> None:
    config = override("optim.lr=0.5", "model.channels=[8, 16]", "checkpoint.every_s=none", "seed=9")
    assert config.optim.lr == 0.5
    assert isinstance(config.model, NetConfig)
    assert config.model.channels == (8, 16)
    assert config.checkpoint.every_s is None
    assert config.seed == 9
    # What was not named is the recipe's.
    assert config.model.activation == "gelu"


def test_none_is_a_choice_where_there_is_one_of_that_name() -> None:
    changed = override("normalize=none", "lr_scale=none", "hardware.compression=none")
    assert (changed.normalize, changed.lr_scale) == ("none", "none")
    assert changed.hardware.compression == "none"


def test_shares_of_a_batch_may_be_unequal() -> None:
    assert override("resources.workers=3", "micro_batch_size=10").resources.workers == 3


def test_an_exact_run_is_cut_into_shards_alone() -> None:
    assert override("exact.shards=8", "resources.workers=8").exact is not None
    with pytest.raises(ConfigError, match=r"memory_format=auto is decided by timing, and an exact"):
        override("exact.shards=8", "hardware.memory_format=auto")
    with pytest.raises(ConfigError, match="9 workers cannot share 8 shards of a batch"):
        override("exact.shards=8", "resources.workers=9")


def test_another_name_begins_from_its_own_defaults() -> None:
    assert override("model.name=resnet").model == ResNetConfig()
    assert override("optim.name=sgd", "optim.lr=0.2").optim == SgdConfig(lr=0.2)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("optim.lrr=1", "no field optim.*lrr; did you mean lr"),
        ("epoch=3", "no field epoch; did you mean epochs"),
        ("epochs=0", r"epochs=0: input should be greater than or equal to 1"),
        ("model.activation=swish", r"activation='swish': .*'relu', 'tanh', 'sigmoid' or 'gelu'"),
        ("model.name=vgg", r"model.name='vgg': input should be one of 'net', 'resnet'"),
        ("resources.workers=65", "batch_size 64 is too small for 65 workers"),
        ("micro_batch_size=0", "micro_batch_size=0: input should be greater than or equal to 1"),
        ("clip={}", "clip needs norm or value"),
        ("model.channels=[0, 3]", r"channels.0=0: input should be greater than or equal to 1"),
        ("resources.min_workers=2", "resources.min_workers 2 is more than the 1 workers"),
        ("exact.shards=65", "exact.shards 65 is more than batch_size 64"),
        ("schedule.epochs=61", "schedule.epochs 61 is longer than the training of 60 epochs"),
        (
            "freeze=[{layers='conv1', until=60}]",
            r"freeze.0.until: conv1 would be trained after epoch 60; the training ends after 60",
        ),
        (
            "schedule={name='cosine', epochs=2, warmup=0.2, unit='epoch'}",
            r"schedule.warmup 0.2 of 2 epochs is less than half an epoch",
        ),
        ("augment.flip=random", "flip='random': input should be a valid boolean or 'alternating'"),
        ("ema=0.99", r"ema=0.99: input should be a table of decay"),
        ("optim.lr", "expected path=value"),
        ("seed.x=1", "seed"),
    ],
)
def test_a_wrong_override_is_one_clear_line(pair: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        override(pair)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_file_changes_fields(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    toml, as_json = "epochs = 3\n[optim]\nlr = 0.25\n", '{"epochs": 3, "optim": {"lr": 0.25}}'
    path.write_text(toml if suffix == ".toml" else as_json)
    config = get_recipe("digits").with_changes(read_config_file(path), str(path))
    assert (config.epochs, config.optim.lr) == (3, 0.25)


def test_the_command_prints_one_line_and_exits_with_2(
    run_inside: RunInside, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = ")
    for args in (
        ("fit", "digits", "--set", "optim.lrr=1"),
        ("fit", "nothing"),
        ("fit", "digits", "--config", str(broken)),
        ("fit", "digits", "--config", str(tmp_path / "missing.toml")),
        ("fit", "digits", "--data", "nowhere"),
        ("evaluate", "no-such-run"),
        ("export", "no-such-run"),
        ("resume", "no-such-run"),
        ("ingest", "nowhere", "--name", "x"),
        ("ingest", "digits", "--name", "a/b"),
    ):
        done = run_inside("train", *args, "--json")
        assert done.exit_code == 2, args
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: "), args
        assert done.json == {"error": line.removeprefix("error: "), "exit_code": 2}


def test_show_prints_the_effective_configuration(run_cli: RunCli) -> None:
    done = run_cli(
        "train", "fit", "digits", "--workers", "2", "--set", "epochs=7", "--show", "--json"
    )
    assert done.exit_code == 0
    config = TrainConfig.decode(done.json, "shown")
    assert (config.epochs, config.resources.workers) == (7, 2)


def test_recipes_are_listed(run_cli: RunCli) -> None:
    done = run_cli("train", "recipes", "--json")
    assert set(done.json) == set(RECIPES)
