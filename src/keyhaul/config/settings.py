"""The settings of a job as its model has them: one list for flags, variables, messages and documentation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from keyhaul.config.filesource import PARTS
from keyhaul.config.parts import AutoChunk, Dedup, Flag, Incremental, Target
from keyhaul.config.sourcekinds import KINDS, kinds_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

Form = Literal["text", "number", "names", "switch"]
"""How the text of a flag or a variable becomes a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a job, as the model's fields describe it; `default` is as the file would say it."""

    place: tuple[str, ...]
    meaning: str
    expected: str
    flags: tuple[Flag, ...]
    form: Form
    variable: str
    default: str
    required: bool

    @property
    def flag(self) -> str:
        """The names of its flags, joined by a comma."""
        return ", ".join(flag.name for flag in self.flags)


def settings_of(job: type[BaseModel]) -> Iterator[Setting]:
    """Yield every setting in the order of the model, a part before what is in it."""
    parts: dict[str, type[BaseModel]] = {
        "chunk": AutoChunk,
        "target": Target,
        "dedup": Dedup,
        "incremental": Incremental,
    }
    for name, info in job.model_fields.items():
        yield _setting((name,), info)
        if name == "source":
            yield from _settings_of_sources()
        elif name in parts:
            yield from (_setting((name, inner), told) for inner, told in parts[name].model_fields.items())


def _settings_of_sources() -> Iterator[Setting]:
    """Yield what the kinds of sources have, each once; what only some have says so."""
    fields = {name: info for kind in reversed(KINDS.values()) for name, info in kind.model_fields.items()}
    for name in dict.fromkeys(name for kind in KINDS.values() for name in kind.model_fields):
        one, kinds = _setting(("source", name), fields[name]), kinds_with(name)
        if name == "kind":
            yield replace(one, expected=" or ".join(KINDS), default="")
        elif len(kinds) < len(KINDS):
            yield replace(one, meaning=f"Kind {' or '.join(kinds)}: {one.meaning}", required=False)
            if name in PARTS:
                inside = PARTS[name].model_fields
                yield from (_setting(("source", name, inner), told) for inner, told in inside.items())
        else:
            yield one


def _setting(place: tuple[str, ...], info: FieldInfo) -> Setting:
    told: Any = info.json_schema_extra
    return Setting(
        place=place,
        meaning=info.description or "",
        expected=str(told["expected"]),
        flags=told["flags"],
        form=_form(info.annotation),
        variable=str(told["variable"]),
        default=_default(info),
        required=info.is_required(),
    )


def _form(annotation: object) -> Form:
    """Return how a flag's or a variable's text becomes the value of a field."""
    kinds = list(_alternatives(annotation))
    if bool in kinds:
        return "switch"
    if int in kinds:
        return "number"
    return "names" if tuple[str, ...] in kinds else "text"


def _alternatives(annotation: object) -> Iterator[object]:
    """Yield a type, or what a union and an annotation are made of."""
    yield annotation
    if get_origin(annotation) in {Annotated, Union, UnionType}:
        for one in get_args(annotation):
            yield from _alternatives(one)


def _default(info: FieldInfo) -> str:
    value = info.default
    if info.is_required() or isinstance(value, BaseModel) or value in (None, (), ""):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
