"""The strict path: each value with its storage class; records that do not fit are set apart with the reason."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.sources.source import REJECTED_BY_SOURCE
from keyhaul.sources.sqlite import values
from keyhaul.sources.sqlite.bounds import literal, written
from keyhaul.sources.sqlite.declared import CONTRACTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.sources.sqlite.catalog import Field
    from keyhaul.sources.sqlite.declared import Declared

_ARTICLES: Final = {"integer": "an integer", "real": "a real", "text": "a text", "blob": "a blob"}
_WHOLE: Final = ("date", "timestamp", "timestamptz", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Records with what was found in each.

    Attributes:
        frame: the columns in their exact types; NULL where a value does not fit.
        raw: the same columns as text, as they were found.
        faults: for each column that has some, the reason and the message of each record; NULL where it fits.
    """

    frame: pl.DataFrame
    raw: pl.DataFrame
    faults: tuple[tuple[pl.Series, pl.Series], ...]

    def only(self, meant: pl.Series) -> Judged:
        """Return the records for which `meant` is true."""
        faults = tuple((reason.filter(meant), message.filter(meant)) for reason, message in self.faults)
        return Judged(frame=self.frame.filter(meant), raw=self.raw.filter(meant), faults=faults)

    def apart(self, keys: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the records that fit, and the others as `REJECTED_BY_SOURCE`; `keys` are all records' own."""
        if not self.faults:
            return self.frame, pl.DataFrame(schema=REJECTED_BY_SOURCE)
        reasons = pl.DataFrame([reason.alias(f"r{n}") for n, (reason, _) in enumerate(self.faults)])
        messages = pl.DataFrame([message.alias(f"m{n}") for n, (_, message) in enumerate(self.faults)])
        wrong = reasons.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
        told = pl.DataFrame(
            {
                "reason": reasons.select(pl.coalesce(pl.all())).to_series(),
                "message": messages.select(pl.concat_str(pl.all(), separator="; ", ignore_nulls=True)).to_series(),
                "place": pl.Series([None], dtype=pl.String).new_from_index(0, len(keys)),
                "key": keys,
                "raw": self.raw.select(pl.struct(pl.all()).struct.json_encode()).to_series(),
            }
        ).filter(wrong)
        return self.frame.filter(~wrong), told


def strict_select(fields: Sequence[Field], expressions: Sequence[str], encoding: str) -> tuple[str, str]:
    """Return the first row's values and the columns of a query: five for each field, so that no class is changed.

    Texts travel as bytes: connectorx cannot read one that is no UTF-8. In a database of UTF-16 each is one.
    """
    text = ("x''", "cast({0} as blob)") if encoding == "UTF-8" else ("''", "{0}")
    seeds, columns = [], []
    for number, expression in enumerate(expressions[: len(fields)]):
        seeds.append(f"'' as t{number}, 0 as i{number}, 0.0 as r{number}, {text[0]} as s{number}, x'' as b{number}")
        kind = f"typeof({expression})"
        parts = {"integer": expression, "real": expression, "text": text[1].format(expression), "blob": expression}
        cases = (f"case when {kind} = '{name}' then {part} end" for name, part in parts.items())
        columns.append(f"{kind}, {', '.join(cases)}")
    return ", ".join(seeds), ", ".join(columns)


def judge(frame: pl.DataFrame, fields: Sequence[Field]) -> Judged:
    """Hold each value against its column's contract."""
    typed, raw, faults = [], [], []
    for number, field in enumerate(fields):
        one = _judge(frame, number, field)
        typed.append(one[0].rename(field.name))
        raw.append(one[1].rename(field.name))
        if one[2] is not None:
            faults.append(one[2])
    return Judged(frame=pl.DataFrame(typed), raw=pl.DataFrame(raw), faults=tuple(faults))


def _judge(
    frame: pl.DataFrame, number: int, field: Field
) -> tuple[pl.Series, pl.Series, tuple[pl.Series, pl.Series] | None]:
    """Return a column's values, the same as text, and the faults, if any."""
    declared, contract = field.declared, CONTRACTS[field.declared.kind]
    kind, integer, real, stored, blob = (frame[f"{letter}{number}"] for letter in "tirsb")
    text = values.texts(stored) if stored.dtype == pl.Binary else stored
    value: pl.Series | None = None
    for name in contract.takes:
        part = _taken(name, declared, integer, real, text, blob)
        value = part if value is None else pl.select(pl.coalesce(value, part)).to_series()
    if value is None:  # pragma: no cover - each contract takes a class
        value = text
    shown = pl.select(
        pl.coalesce(
            text,
            integer.cast(pl.String),
            real.cast(pl.String),
            "\\x" + (stored if stored.dtype == pl.Binary else blob).bin.encode("hex"),
            "\\x" + blob.bin.encode("hex"),
        )
    ).to_series()
    wrong = value.is_null() & (kind != "null")
    return value, shown, _faults(wrong, kind, stored, text, field) if wrong.any() else None


def _taken(
    name: str, declared: Declared, integer: pl.Series, real: pl.Series, text: pl.Series, blob: pl.Series
) -> pl.Series:
    if name == "integer":
        return values.from_integer(integer, declared)
    if name == "real":
        return values.from_real(real, declared)
    return values.from_text(text, declared) if name == "text" else blob


def _faults(
    wrong: pl.Series, kind: pl.Series, stored: pl.Series, text: pl.Series, field: Field
) -> tuple[pl.Series, pl.Series]:
    """Return the reason and the message for each record in which the column does not fit."""
    contract = CONTRACTS[field.declared.kind]
    expected = contract.expected if field.declared.precision is None else f"a {field.declared.pg_type}"
    lead, tail = f"{field.name}: got ", f", expected {expected} ({field.text or 'no declared type'})"
    spoilt = stored.is_not_null() & text.is_null()
    nul = text.str.contains("\0", literal=True).fill_null(value=False)
    value = "malformed" if field.declared.kind in _WHOLE else "out_of_range"
    strange = ~kind.is_in(contract.takes)
    reason = (
        pl.when(~wrong)
        .then(None)
        .when(strange)
        .then(pl.lit("storage_class"))
        .when(spoilt | nul)
        .then(pl.lit("encoding"))
        .otherwise(pl.lit(value))
    )
    named = kind.replace_strict(_ARTICLES, default="", return_dtype=pl.String)
    got = (
        pl.when(spoilt)
        .then(pl.lit("bytes that are no UTF-8"))
        .when(nul)
        .then(pl.lit("a text with U+0000"))
        .when(strange)
        .then(named)
        .otherwise(named + " of another form or range")
    )
    message = pl.when(wrong).then(pl.lit(lead) + got + pl.lit(tail))
    return pl.select(reason).to_series(), pl.select(message).to_series()


# --- keys ----------------------------------------------------------------------------------------


def key_texts(judged: Judged, fields: Sequence[Field], key: Sequence[str]) -> pl.Series:
    """Return each record's key as the quarantine has keys; NULL where a part is NULL.

    A part that does not fit its column is as it was found.
    """
    kinds = {field.name: field.declared for field in fields}
    parts = [pl.coalesce(_key_text(judged.frame[name], kinds[name]), judged.raw[name]).alias(name) for name in key]
    frame = pl.select(parts)
    return _joined(frame, key)


def _joined(frame: pl.DataFrame, key: Sequence[str]) -> pl.Series:
    if len(key) == 1:
        return frame.to_series()
    encoded = [pl.struct(pl.col(name).alias("k")).struct.json_encode().str.slice(5).str.head(-1) for name in key]
    joined = pl.lit("[") + pl.concat_str(encoded, separator=",") + pl.lit("]")
    return frame.select(pl.when(pl.all_horizontal(pl.all().is_not_null())).then(joined)).to_series()


def _key_text(value: pl.Series, declared: Declared) -> pl.Series:
    """Return values as DuckDB prints them, which writes the quarantine's other keys."""
    if declared.kind == "timestamp":
        return value.dt.strftime("%Y-%m-%d %H:%M:%S%.6f").str.replace(r"\.?0+$", "")
    if declared.kind == "blob":
        return "\\x" + value.bin.encode("hex")
    return value.cast(pl.String)


def wanted_keys(keys: Sequence[str], fields: Sequence[Field], names: Sequence[str], encoding: str) -> str:
    """Return a condition that holds for all records with one of these keys; others may meet it too."""
    parts = [[key] for key in keys] if len(fields) == 1 else [json.loads(key) for key in keys]
    conditions = []
    for number, (field, name) in enumerate(zip(fields, names, strict=True)):
        asked = list(dict.fromkeys(part[number] for part in parts))
        forms = ", ".join(form for text in asked for form in _forms(text, encoding))
        condition = f"{name} in ({forms})"
        if field.declared.kind in {"date", "timestamp", "timestamptz"}:
            days = ", ".join(sorted({literal(written(text[:10]), encoding) for text in asked}))
            condition = f"({condition} or substr({name}, 1, 10) in ({days}))"
        conditions.append(condition)
    return " and ".join(conditions) if keys else "false"


def _forms(text: str, encoding: str) -> list[str]:
    """Return the values, as SQL, that a key's text may stand for."""
    forms = [literal(written(text), encoding)]
    if text.startswith("\\x"):
        try:
            forms.append(literal(written(bytes.fromhex(text[2:])), encoding))
        except ValueError:
            return forms
    if text in {"true", "false"}:
        forms.append("1" if text == "true" else "0")
    try:
        number = float(text)
    except ValueError:
        return forms
    if math.isfinite(number):
        # SQLite may read a decimal as the double beside it.
        around = (number, math.nextafter(number, math.inf), math.nextafter(number, -math.inf))
        forms += [literal(written(near), encoding) for near in around]
        if text.lstrip("-").isdecimal() and -(2**63) <= int(text) < 2**63:
            forms.append(text)
    return forms
