"""Every field of a configuration, with its type, default and meaning, for who writes one."""

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cluster.config import choices_of, models_in
from cluster.errors import NotFoundError
from train.config import TrainConfig

_PLAIN = {
    bool: "true, false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "file",
}
_HEADER = """# Configuration

Every field of a run's configuration, for `train fit RECIPE --set PATH=VALUE`. `PATH` is the part that a heading
names and the field, such as `optim.momentum`. Defaults are the fields' own; a recipe has others for some, and
`train fit RECIPE --show` prints what comes out.

This page is what `python -m train fields --markdown` prints.
"""  # noqa: E501
_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


@dataclass(frozen=True)
class Row:
    """One field."""

    name: str
    values: str
    """What it takes."""
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A part of the configuration, or one of the kinds that it may be of."""

    part: str
    """Path of the part; empty for the whole."""
    kind: str
    """What its ``name`` is, if it is a choice."""
    meaning: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """As it is written after ``--set``."""
        return f"{self.part}.name={self.kind}" if self.kind else self.part or "configuration"


def find_sections(part: str | None = None) -> list[Section]:
    """Sections of the whole configuration, or of a part.

    Args:
        part: such as ``optim``, ``augment.erasing`` or ``optim.muon``.

    Raises:
        NotFoundError: there is no such part.
    """
    sections = list(_walk(TrainConfig, ""))
    if part is None:
        return sections
    found = [
        one
        for one in sections
        if part in (one.part, f"{one.part}.{one.kind}") or one.part.startswith(f"{part}.")
    ]
    if not found:
        parts = sorted({one.part for one in sections if one.part})
        raise NotFoundError(f"no part {part!r} of a configuration; there are: {', '.join(parts)}")
    return found


def to_markdown(sections: Sequence[Section]) -> str:
    """A page with a table for each section."""
    lines = [_HEADER]
    for section in sections:
        lines += [f"## {section.title}", "", section.meaning, ""] if section.part else []
        lines += ["| field | values | default | |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{row.name}` | {row.values} | {row.default} | {row.meaning} |"
            for row in section.rows
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def _walk(model: type[BaseModel], path: str) -> Iterator[Section]:
    inner: list[tuple[str, type[BaseModel]]] = []
    rows = []
    for name, field in model.model_fields.items():
        models = models_in(field.annotation)
        inner += [(f"{path}.{name}" if path else name, one) for one in models]
        plain = any(not models_in(one) for one in choices_of(field.annotation))
        if name != "name" and (not models or plain or not field.is_required()):
            rows.append(_row(name, field))
    yield Section(path, _kind(model), _one_line(model.__doc__), tuple(rows))
    for part, one in inner:
        yield from _walk(one, part)


def _row(name: str, field: FieldInfo) -> Row:
    limits = filter(None, (_limit(one) for one in field.metadata))
    values = ", ".join([*_values(field.annotation), *limits])
    if NoneType in choices_of(field.annotation, none=True):
        values += ", or none"
    return Row(name, values, _default(field), _one_line(field.description))


def _limit(constraint: object) -> str:
    for name, sign in _BOUNDS:
        if (bound := getattr(constraint, name, None)) is not None:
            return f"{sign} {bound}"
    return ""


def _values(annotation: Any) -> list[str]:
    texts = []
    for choice in choices_of(annotation):
        origin = get_origin(choice)
        if origin is Literal:
            texts += [str(value).lower() for value in get_args(choice)]
        elif models_in(choice):
            texts += ["list of tables" if origin is tuple else _kind(choice) or "table"]
        elif origin is tuple:
            texts.append("list")
        elif origin is dict:
            texts.append("table")
        else:
            texts.append(_PLAIN[choice])
    return texts


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return _kind(type(default)) or "its own"
    if isinstance(default, bool) or default is None:
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:.6g}"
    return default if isinstance(default, str) else json.dumps(default)


def _kind(model: type[BaseModel]) -> str:
    field = model.model_fields.get("name")
    is_choice = field is not None and get_origin(field.annotation) is Literal
    return str(field.default) if field is not None and is_choice else ""


def _one_line(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").replace("``", "`").split())
