"""The types of a job's settings that pydantic has no type for: how each is checked, and its JSON schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import GetPydanticSchema, WithJsonSchema
from pydantic_core import core_schema

from keyhaul.config import entries, runrules, steps, tablestep
from keyhaul.config.allowance import Allowance, read_allowance
from keyhaul.config.lag import Lag, read_lag
from keyhaul.config.runrules import RunRule
from keyhaul.config.steps import Rule, Step
from keyhaul.config.tablestep import TableEntry
from keyhaul.quantity import MemorySize, Percent, read_memory, read_percent, read_size

if TYPE_CHECKING:
    from collections.abc import Callable

_NOT_NAMES = "not names"


def _names(value: object) -> tuple[str, ...]:
    """Take one name or a list of different ones; an empty tuple, which no file gives, stands for none."""
    if value == () and isinstance(value, tuple):
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(_NOT_NAMES)
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError(_NOT_NAMES)
    return tuple(names)


def _words(value: object) -> tuple[str, ...]:
    """Take a list of texts, which may be empty ones."""
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ValueError(_NOT_NAMES)
    return tuple(value)


def _by(function: Callable[[Any], Any], **schema: object) -> tuple[Any, Any]:
    """Return the annotations of a field that `function` checks and whose file form has this JSON schema."""
    checked = GetPydanticSchema(lambda _source, _handler: core_schema.no_info_plain_validator_function(function))
    return checked, WithJsonSchema(dict(schema))


Names = Annotated[tuple[str, ...], *_by(_names, **entries.ONE_OR_MORE)]
Words = Annotated[tuple[str, ...], *_by(_words, type="array", items={"type": "string"})]
Steps = Annotated[tuple[Step, ...], *_by(tuple, type="array", items=steps.STEP_SCHEMA)]
Targets = Annotated[tuple[TableEntry, ...], *_by(tuple, **tablestep.TARGETS_SCHEMA)]
Rules = Annotated[tuple[Rule, ...], *_by(tuple, **steps.RULES_SCHEMA)]
RunRules = Annotated[tuple[RunRule, ...], *_by(tuple, **runrules.RUN_RULES_SCHEMA)]
Allowed = Annotated[
    Allowance,
    *_by(
        read_allowance,
        anyOf=[{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?%?$"}],
    ),
]
LagOf = Annotated[
    Lag,
    *_by(
        read_lag,
        anyOf=[{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?[smhd]?$"}],
    ),
]
MemoryOf = Annotated[
    MemorySize,
    *_by(read_memory, type="string", pattern=r"^[0-9]+(\.[0-9]+)? ?([kKmMgGtT][bB]|%)$"),
]
SizeOf = Annotated[MemorySize, *_by(read_size, type="string", pattern=r"^[0-9]+(\.[0-9]+)? ?[kKmMgGtT][bB]$")]
PercentOf = Annotated[Percent, *_by(read_percent, type="string", pattern=r"^[0-9]+(\.[0-9]+)? ?%$")]
