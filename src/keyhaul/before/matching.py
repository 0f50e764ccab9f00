"""Where a job's key stands in its target, and whether both databases compare it alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyhaul.postgres import catalog

if TYPE_CHECKING:
    from keyhaul.before.prepare import Prepared
    from keyhaul.model import Column
    from keyhaul.sources.source import Description

_ORDERED: Final = frozenset(
    {
        "int2",
        "int4",
        "int8",
        "numeric",
        "float4",
        "float8",
        "date",
        "time",
        "timetz",
        "timestamp",
        "timestamptz",
        "interval",
        "uuid",
        "bytea",
        "bool",
        "oid",
        "name",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
    }
)
"""Types that every server orders alike. An enum is not among them: its labels may stand in another order."""

_TEXTS: Final = frozenset({"text", "varchar"})
_WIDER: Final = {"int2": {"int4", "int8", "numeric"}, "int4": {"int8", "numeric"}, "int8": {"numeric"}}
_ONE_TEXT: Final = frozenset(
    {"int2", "int4", "int8", "date", "timestamp", "timestamptz", "uuid", "text", "varchar", "name", "bool", "oid"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """How rows of the source are found in the target.

    Attributes:
        key: the target's columns that are the job's key, in its order; empty when a part of it is not written.
        ranged: a range of the key has the same rows at both ends, so that each chunk is compared by itself.
        why_whole: one sentence when it is not; the tables are then compared as a whole.
        unique: the key's values are different in every row that the source gives.
        exact_texts: two equal keys have one text, so that equal keys can be told from a frame.
        nullable: those of `key` that can be NULL in the target.
        indexed: an index of the target leads with the key.
    """

    key: tuple[Column, ...] = ()
    ranged: bool = False
    why_whole: str = ""
    unique: bool = False
    exact_texts: bool = False
    nullable: tuple[str, ...] = ()
    indexed: bool = True


def find_matching(prepared: Prepared) -> Matching:
    """Say how the rows of a job's chunks are found in its target."""
    outputs = {column.source: name for name, column in prepared.transform.output.items() if column.source}
    written = {column.name: column.target for column in prepared.columns}
    names = [outputs.get(name, "") for name in prepared.job.key]
    if any(name not in written for name in names):
        return Matching(why_whole="the key is not among the target's columns")
    key = tuple(written[name] for name in names)
    described = prepared.source.describe()
    origins = [prepared.sources[name] for name in prepared.job.key]
    if not described.ranged:
        problem = f"{described.label} may order its keys otherwise than the target"
    else:
        pairs = zip(origins, key, strict=True)
        problem = next((told for pair in pairs if (told := _differs(prepared, described, *pair))), "")
    found = catalog.resolve(prepared.target_conn, prepared.target.identifier.as_string(None))
    return Matching(
        key=key,
        ranged=not problem,
        why_whole=problem,
        unique=described.key_unique,
        exact_texts=all(column.base_type in _ONE_TEXT for column in origins),
        nullable=tuple(column.name for column in key if not column.not_null),
        indexed=found is not None and catalog.leads_an_index(prepared.target_conn, found[0], names),
    )


def _differs(prepared: Prepared, described: Description, origin: Column, target: Column) -> str:
    """Return why a range of a key's column may have other rows in the target, or an empty string."""
    base, other = origin.base_type, target.base_type
    if base in _ORDERED and (base == other or other in _WIDER.get(base, ())):
        return ""
    text = {base, other} <= _TEXTS or base == other == "bpchar"
    here = described.orders.get(origin.name) if text else None
    there = (
        catalog.collation_of(prepared.target_conn, prepared.target.identifier, target.name)
        if here is not None
        else None
    )
    if here is not None and here == there:
        return ""
    what = "collation" if text else "type"
    return f"{target.name} has another {what} in the target than {origin.name} in the source, and may sort otherwise"
