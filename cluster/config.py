"""Frozen configuration models, and the three ways a user changes one: recipe, file, override."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cluster.errors import ConfigError


class Frozen(BaseModel):
    """An immutable value with named, typed fields; unknown fields are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _read_words(cls, values: Any) -> Any:
        """``none`` is no value, or the choice of that name; ``true`` is a part as it is."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        words = {
            name: _in_words(fields[name].annotation, value)
            for name, value in values.items()
            if name in fields and (value is None or isinstance(value, bool | str))
        }
        return {**values, **words}

    @classmethod
    def decode(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate ``values``.

        Args:
            values: nested mapping, as TOML or JSON gives it.
            where: what the values came from, for the message.

        Raises:
            ConfigError: names the field, the value, and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {explain(cls, error)}") from None

    def with_changes(self, changes: Mapping[str, Any], where: str) -> Self:
        """A copy in which nested ``changes`` replace the fields they name."""
        return self.decode(_merge(self.model_dump(), changes), where)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a TOML or JSON file into a nested mapping.

    Raises:
        ConfigError: the file is missing or does not parse.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--config {path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected a table of fields")
    return values


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Turn ``["optim.lr=0.1", "model.name=net"]`` into a nested mapping.

    A value is read as TOML (numbers, booleans, quoted strings, arrays); ``none`` clears a field, or
    is the choice of that name; anything else is a plain string.

    Raises:
        ConfigError: a pair has no ``=``.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        path, separator, raw = pair.partition("=")
        if not separator or not path.strip():
            raise ConfigError(f"--set {pair}: expected path=value, such as optim.lr=0.1")
        level = nested
        *parents, leaf = path.strip().split(".")
        for parent in parents:
            child = level.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {pair}: {parent} was already given a value")
            level = child
        level[leaf] = _parse_value(raw.strip())
    return nested


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first problem of a validation error as one line: field, value, what is allowed."""
    problems = [_Problem.of(model, details) for details in error.errors()]
    first = problems[0]
    # Of a field that takes several types, each says what it would want: a table that is wrong
    # inside was meant as one, and of plain values any would do.
    alike = [one for one in problems if one.names[: len(first.names)] == first.names]
    deepest = max(alike, key=lambda one: len(one.names))
    same = [one for one in alike if one.names == deepest.names]
    wanted = " or ".join(
        [same[0].wanted, *(one.wanted.removeprefix("input should be ") for one in same[1:])]
    )
    more = len(problems) - len(alike)
    return f"{same[0].subject}{wanted} (and {more} more)" if more else f"{same[0].subject}{wanted}"


@dataclass(frozen=True)
class _Problem:
    """One problem of a validation error."""

    names: list[str]
    """Of the fields from the outermost to the one in question."""
    subject: str
    """Field and value, as the line begins."""
    wanted: str

    @classmethod
    def of(cls, model: type[BaseModel], details: ErrorDetails) -> Self:
        """What pydantic says, in the words of who wrote the configuration."""
        kind, location = details["type"], list(details["loc"])
        unknown = str(location.pop()) if kind == "extra_forbidden" else ""
        names, owners = _follow(model, location)
        context = details.get("ctx", {})
        if kind == "union_tag_invalid":
            names = [*names, str(context["discriminator"]).strip("'")]
        path = ".".join(names) or model.__name__
        fields = sorted({name for owner in owners for name in owner.model_fields})
        if unknown:
            near = difflib.get_close_matches(unknown, fields, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            subject = f"no field {'.'.join([*names, unknown])}; "
            return cls([*names, unknown], subject, f"{hint}allowed: {', '.join(fields)}")
        if kind == "missing":
            return cls(names, f"{path} is required", "")
        if kind == "union_tag_invalid":
            allowed = str(context["expected_tags"])
            return cls(names, f"{path}={context['tag']!r}: ", f"input should be one of {allowed}")
        # A rule about several fields has the whole table as its input, which says nothing.
        given = details["input"]
        subject = f"{path}: " if isinstance(given, Mapping) else f"{path}={given!r}: "
        if kind in {"model_type", "model_attributes_type"}:
            return cls(names, subject, f"input should be a table of {', '.join(fields)}")
        said = details["msg"].removeprefix("Value error, ").partition(", unable to ")[0]
        return cls(names, subject, f"{said[:1].lower()}{said[1:]}")


def _parse_value(raw: str) -> Any:
    if raw.lower() in {"none", "null"}:
        return None
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    # A part with a name is a choice (model.name, optim.name): another name begins from that
    # choice's own defaults, since the old one's fields mean nothing to it.
    renamed = "name" in base and changes.get("name", base["name"]) != base["name"]
    merged: dict[str, Any] = {} if renamed else dict(base)
    for key, value in changes.items():
        current = merged.get(key)
        both = isinstance(current, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(current, value) if both else value  # type: ignore[arg-type]
    return merged


def _follow(
    model: type[BaseModel], location: Sequence[int | str]
) -> tuple[list[str], list[type[BaseModel]]]:
    """Follow an error's location.

    Returns:
        The names that a user writes, without the tags of unions that pydantic puts between them,
        and the models that may stand at the end.
    """
    names: list[str] = []
    options = [model]
    tag_follows = False
    for part in location:
        if tag_follows:
            options = [option for option in options if _has_tag(option, str(part))]
            tag_follows = False
            continue
        name = str(part)
        names.append(name)
        found = [option.model_fields[name] for option in options if name in option.model_fields]
        if found:  # Otherwise it is a place in a sequence.
            choices = choices_of(found[0].annotation)
            options = [model for choice in choices for model in models_in(choice)]
            tag_follows = len(choices) > 1
    return names, options


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return tag == model.__name__ or any(
        get_origin(field.annotation) is Literal and tag in get_args(field.annotation)
        for field in model.model_fields.values()
    )


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's type names, wherever in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for option in get_args(annotation) for model in models_in(option)]


def choices_of(annotation: Any, *, none: bool = False) -> list[Any]:
    """The types of a union, in one level; NoneType among them only if asked for."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return choices_of(get_args(annotation)[0], none=none)
    if origin in {Union, UnionType}:
        return [
            choice for option in get_args(annotation) for choice in choices_of(option, none=none)
        ]
    return [annotation] if none or annotation is not NoneType else []


def _in_words(annotation: Any, value: Any) -> Any:
    """What is meant by ``none``, and by ``true`` and ``false`` for a part that may be off."""
    choices = choices_of(annotation, none=True)
    literals = {
        word for choice in choices if get_origin(choice) is Literal for word in get_args(choice)
    }
    if value is None:
        return "none" if "none" in literals and NoneType not in choices else None
    if isinstance(value, str) and value.lower() in {"none", "null"}:
        if "none" in literals:
            return "none"
        return None if NoneType in choices else value
    part = len(choices) == 2 and NoneType in choices and models_in(annotation)
    return ({} if value else None) if part and isinstance(value, bool) else value
