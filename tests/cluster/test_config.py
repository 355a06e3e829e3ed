"""A wrong key or value names the field, the value, and what is allowed."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from cluster.config import Frozen, parse_overrides, read_config_file
from cluster.errors import ConfigError


class Sgd(Frozen):
    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = 0.9


class Adam(Frozen):
    name: Literal["adam"] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


class Ema(Frozen):
    decay: float = Field(default=0.99, lt=1)


class Scale(Frozen):
    mean: float
    std: float = 1.0


class Job(Frozen):
    data: str
    epochs: int = Field(default=5, ge=1)
    optim: Annotated[Sgd | Adam, Field(discriminator="name")] = Sgd()
    width: Literal[32, 64] = 32
    target: float | None = 0.9
    ema: Ema | None = None
    stages: tuple[Ema, ...] = ()
    flip: bool | Literal["alternating"] = False
    normalize: Literal["dataset", "none"] | Scale = "dataset"


JOB = Job(data="digits")


def changed(*pairs: str) -> Job:
    return JOB.with_changes(parse_overrides(pairs), "--set")


def test_overrides_reach_nested_fields_and_keep_the_rest() -> None:
    job = changed("optim.lr=0.5", "epochs=2", "data=fashion")
    assert job == Job(data="fashion", epochs=2, optim=Sgd(lr=0.5))
    assert JOB.epochs == 5


def test_another_choice_begins_from_its_own_defaults() -> None:
    assert changed("optim.name=adam").optim == Adam()
    assert changed("optim.name=sgd", "optim.lr=0.5").optim == Sgd(lr=0.5)


@pytest.mark.parametrize(
    ("pair", "nested"),
    [
        ("a=1", {"a": 1}),
        ("a=1e-3", {"a": 1e-3}),
        ("a=true", {"a": True}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ('a="1"', {"a": "1"}),
        ("a=net", {"a": "net"}),
        ("a=none", {"a": None}),
        ("a=x=y", {"a": "x=y"}),
        ("a=", {"a": ""}),
        ("a.b.c=1", {"a": {"b": {"c": 1}}}),
        (" a.b = 1 ", {"a": {"b": 1}}),
    ],
)
def test_values_are_read_as_toml_or_as_text(pair: str, nested: dict[str, object]) -> None:
    assert parse_overrides([pair]) == nested


def test_none_is_no_value_or_the_choice_of_that_name(tmp_path: Path) -> None:
    on = changed("ema.decay=0.5")
    for off in (parse_overrides(["ema=none", "target=none", "normalize=none"]), read(tmp_path)):
        job = on.with_changes(off, "test")
        assert (job.ema, job.target, job.normalize) == (None, None, "none")


def test_no_value_is_not_the_choice_of_that_name() -> None:
    class Options(Frozen):
        normalize: Literal["dataset", "none"] | None = "dataset"

    assert Options(normalize=None).normalize is None
    assert Options(normalize="none").normalize == "none"
    assert Options.decode({"normalize": None}, "test").normalize is None


def read(folder: Path) -> dict[str, object]:
    """What TOML, which has no null, gives for the same."""
    file = folder / "job.toml"
    file.write_text('ema = "none"\ntarget = "none"\nnormalize = "none"\n')
    return read_config_file(file)


def test_a_part_is_turned_on_and_off_by_a_word() -> None:
    assert changed("ema=true").ema == Ema()
    assert changed("ema.decay=0.5").with_changes({"ema": False}, "test").ema is None
    assert changed("flip=true").flip is True


def test_later_overrides_win() -> None:
    assert parse_overrides(["a=1", "a=2"]) == {"a": 2}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["epochs"], "--set epochs: expected path=value, such as optim.lr=0.1"),
        (["=3"], "--set =3: expected path=value"),
        (["optim=adam", "optim.lr=1"], "--set optim.lr=1: optim was already given a value"),
    ],
)
def test_a_pair_that_cannot_be_read(pairs: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_overrides(pairs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("pair", "parts"),
    [
        ("epoch=3", ["no field epoch", "did you mean epochs?", "allowed: data, ema, epochs"]),
        ("zzz=3", ["no field zzz", "allowed: data, ema"]),
        ("optim.lrs=3", ["no field optim.lrs", "did you mean lr?", "momentum"]),
        ("epochs=0", ["epochs=0", "greater than or equal to 1"]),
        ("epochs=many", ["epochs='many'", "valid integer"]),
        ("optim.lr=-1", ["--set: optim.lr=-1", "greater than 0"]),
        ("width=48", ["width=48", "32 or 64"]),
        ("optim.name=lion", ["optim.name='lion': input should be one of 'sgd', 'adam'"]),
        ("ema=0.9", ["ema=0.9: input should be a table of decay"]),
        ("ema.rate=1", ["no field ema.rate; allowed: decay"]),
        ("stages=[{decay=2}]", ["stages.0.decay=2: input should be less than 1"]),
        ("stages=[{decal=1}]", ["no field stages.0.decal; did you mean decay? allowed: decay"]),
        ("flip=random", ["flip='random': input should be a valid boolean or 'alternating'"]),
        ("normalize=full", ["normalize='full': input should be 'dataset' or 'none' or a table of"]),
        ("normalize.std=2", ["normalize.mean is required"]),
        ('normalize={mean=0, std="a"}', ["normalize.std='a': input should be a valid number"]),
        (
            'optim={name="adam", betas=[1, "x"]}',
            ["optim.betas.1='x': input should be a valid number"],
        ),
    ],
)
def test_a_wrong_field_or_value_is_named(pair: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        changed(pair)
    message = str(error.value)
    assert message.startswith("--set: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_required_field() -> None:
    with pytest.raises(ConfigError, match=r"job\.toml: data is required"):
        Job.decode({}, "job.toml")


def test_further_problems_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        changed("epochs=0", "width=5")


def test_values_are_immutable() -> None:
    with pytest.raises(ValidationError):
        JOB.epochs = 3  # type: ignore[misc]


def test_files(tmp_path: Path) -> None:
    toml = tmp_path / "job.toml"
    toml.write_text('epochs = 2\n[optim]\nname = "adam"\n')
    values = read_config_file(toml)
    assert JOB.with_changes(values, "job.toml").epochs == 2
    as_json = tmp_path / "job.json"
    as_json.write_text('{"epochs": 2, "optim": {"name": "adam"}}')
    assert read_config_file(as_json) == values


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.toml", None, "No such file"),
        ("bad.toml", "epochs = ", "Invalid value"),
        ("bad.json", "{", "Expecting"),
        ("list.json", "[]", "expected a table of fields"),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_config_file(file)
    assert str(error.value).startswith(f"--config {file}")
