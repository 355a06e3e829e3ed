"""Frozen configuration models, and the three ways a user changes one: recipe, file, override."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import ConfigError


class Frozen(BaseModel):
    """An immutable value with named, typed fields; unknown fields are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
    )

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

    A value is read as TOML (numbers, booleans, quoted strings, arrays); ``none`` clears a field;
    anything else is a plain string.

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
    problems = error.errors()
    first = problems[0]
    location = [str(part) for part in first["loc"]]
    names, owners = _follow(
        model, location[:-1] if first["type"] == "extra_forbidden" else location
    )
    path = ".".join(names) or model.__name__
    if first["type"] == "extra_forbidden":
        path = ".".join([*names, location[-1]])
        allowed = sorted({name for owner in owners for name in owner.model_fields})
        near = difflib.get_close_matches(location[-1], allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        line = f"no field {path}; {hint}allowed: {', '.join(allowed)}"
    elif first["type"] == "missing":
        line = f"{path} is required"
    else:
        message = first["msg"].removeprefix("Value error, ")
        # A rule about several fields has the whole table as its input, which says nothing.
        given = "" if isinstance(first["input"], Mapping) else f"={first['input']!r}"
        line = f"{path}{given}: {message[:1].lower()}{message[1:]}"
    more = len(problems) - 1
    return f"{line} (and {more} more)" if more else line


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


def _follow(model: type[BaseModel], location: list[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """Follow an error's location.

    Returns:
        The names that a user writes, without the tags of unions that pydantic puts between them,
        and the models that may stand at the end.
    """
    names: list[str] = []
    options = [model]
    for part in location:
        chosen = [option for option in options if len(options) > 1 and _has_tag(option, part)]
        if chosen:
            options = chosen
            continue
        names.append(part)
        found = [option.model_fields[part] for option in options if part in option.model_fields]
        options = _models_in(found[0].annotation) if found else []
    return names, options


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return tag == model.__name__ or any(
        get_origin(field.annotation) is Literal and tag in get_args(field.annotation)
        for field in model.model_fields.values()
    )


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for option in get_args(annotation) for model in _models_in(option)]
