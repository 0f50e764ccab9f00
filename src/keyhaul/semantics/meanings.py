"""What a value means that a frame holds as text: in which order PostgreSQL has it, and when two are equal.

A kind whose texts are in PostgreSQL's order byte by byte needs nothing; every other has a *key*, computed for whole
columns at a time, whose order and equality are the type's. A type without either cannot be compared here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.postgres.pgtypes import DIRECT, TEXT, family, is_bounded_numeric
from keyhaul.semantics import constants, numerics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyhaul.model import Column

BYTES: Final = frozenset({"time", "uuid", "macaddr", "macaddr8", "bit", "varbit", "pg_lsn"})
"""Kinds with a text of a fixed form, whose order is that of their bytes (a bit string's, that of its first other bit);
``pg_lsn`` after its halves are filled up with zeros."""
KEYED: Final = frozenset({"numeric", "interval", "enum", "inet", "cidr", "timetz", "oid"})
STRINGS: Final = frozenset({"collated", "bpchar"})
"""Kinds that are texts in PostgreSQL, too: functions of texts may look at them."""
OPAQUE: Final = "opaque"

_MICROSECONDS: Final = {"hour": 3_600_000_000, "minute": 60_000_000, "second": 1_000_000}
_ENDLESS: Final = 10**30
"""Of an infinite interval: the longest has 5.6e21 microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What PostgreSQL means by the texts of a column.

    Attributes:
        kind: a member of `BYTES`, `KEYED` or `STRINGS`, or ``opaque``: nothing but IS NULL can be asked.
        pg_type: for messages.
        labels: of an enum, in their order.
        equality: whether two values are equal exactly when their texts (or keys) are.
        ordered: whether values have an order here.
        why: why not.
    """

    kind: str
    pg_type: str
    labels: tuple[str, ...] = ()
    equality: bool = True
    ordered: bool = True
    why: str = ""

    @property
    def is_string(self) -> bool:
        """Whether the type's own values are texts."""
        return self.kind in STRINGS

    def key(self, text: pl.Expr) -> pl.Expr:
        """Return what is compared in the place of texts: see `key`."""
        return key(self, text)

    @property
    def key_type(self) -> pl.DataType:
        """The type of a key."""
        return keys(self, []).dtype

    def like(self, other: Meaning) -> bool:
        """Whether both are of one type, as far as comparisons go."""
        alike = {"cidr": "inet", "varbit": "bit"}
        same = alike.get(self.kind, self.kind) == alike.get(other.kind, other.kind)
        return same and (self.kind != "enum" or (self.pg_type, self.labels) == (other.pg_type, other.labels))


NUMERIC: Final = Meaning(kind="numeric", pg_type="numeric")
"""Of a number that an expression computes from one without a declared precision."""


def meaning_of(column: Column) -> Meaning | None:  # noqa: PLR0911 - a case each
    """Return what the column's texts mean; None when the frame's own type says it."""
    base, pg_type = column.base_type, column.pg_type
    if family(column) == "enum":
        if column.labels:
            return Meaning(kind="enum", pg_type=pg_type, labels=column.labels)
        return Meaning(kind=OPAQUE, pg_type=pg_type, equality=False, ordered=False, why="its labels are not known")
    if base == "numeric":
        return None if is_bounded_numeric(column) else Meaning(kind="numeric", pg_type=pg_type)
    if base in BYTES or base in KEYED:
        return Meaning(kind=base, pg_type=pg_type)
    if base in {"json", "jsonb"} or base in TEXT or family(column) or base not in DIRECT:
        return Meaning(kind=OPAQUE, pg_type=pg_type, equality=False, ordered=False, why=_why(column))
    if column.collation == "equality":
        return Meaning(
            kind="collated", pg_type=pg_type, equality=False, ordered=False,
            why="its collation takes different texts for equal",
        )  # fmt: skip
    if column.collation == "order" and base != "name":
        kind = "bpchar" if base == "bpchar" else "collated"
        return Meaning(
            kind=kind, pg_type=pg_type, ordered=False, why="its collation has an order other than the bytes'"
        )
    return Meaning(kind="bpchar", pg_type=pg_type) if base == "bpchar" else None


def _why(column: Column) -> str:
    if column.base_type == "json":
        return "PostgreSQL does not compare json"
    if column.base_type == "citext":
        return "its equality ignores case"
    return "it travels as text, whose order and equality are not the type's"


def key(meaning: Meaning, text: pl.Expr) -> pl.Expr:
    """Return what is compared in the place of a column's texts, of one type and meaning in every chunk."""
    make = _KEYS.get(meaning.kind)
    if meaning.kind == "enum":
        ranks = {label: rank for rank, label in enumerate(meaning.labels)}
        return text.replace_strict(ranks, default=None, return_dtype=pl.Int32)
    return text if make is None else make(text)


def constant(meaning: Meaning, text: str) -> pl.Expr:
    """Return the key of a constant, as its input function would read it in our sessions.

    Raises:
        ValueError: PostgreSQL does not read it, or not the same under every setting; the text says what to write.
    """
    found = keys(meaning, [text])
    return pl.lit(found[0], found.dtype)


def keys(meaning: Meaning, texts: Sequence[str]) -> pl.Series:
    """Return the keys of many constants.

    Raises:
        ValueError: see `constant`.
    """
    if meaning.kind == "enum" and not set(texts) <= set(meaning.labels):
        msg = f"expected a label of {meaning.pg_type}: {', '.join(meaning.labels)}"
        raise ValueError(msg)
    read = pl.DataFrame({"x": [canonical(meaning, text) for text in texts]}, schema={"x": pl.String})
    return read.select(key(meaning, pl.col("x"))).to_series()


def canonical(meaning: Meaning, text: str) -> str:
    """Return a constant as PostgreSQL prints it.

    Raises:
        ValueError: see `constant`.
    """
    read = constants.READ.get(meaning.kind)
    return text if read is None else read(text)


# --- keys ----------------------------------------------------------------------------------------


def _interval(text: pl.Expr) -> pl.Expr:
    """In microseconds, a month of 30 days and a day of 24 hours: interval_cmp_value in timestamp.c."""

    def part(pattern: str) -> pl.Expr:
        return text.str.extract(pattern).cast(pl.Int128).fill_null(0)

    months = part(r"(-?\d+) year") * 12 + part(r"(-?\d+) mon")
    days = months * 30 + part(r"(-?\d+) day")
    clock = (
        part(r"(\d+):\d\d:\d\d") * _MICROSECONDS["hour"]
        + part(r"\d+:(\d\d):\d\d") * _MICROSECONDS["minute"]
        + part(r"\d+:\d\d:(\d\d)") * _MICROSECONDS["second"]
        + text.str.extract(r":\d\d\.(\d+)").str.pad_end(6, "0").cast(pl.Int128).fill_null(0)
    )
    sign = pl.when(text.str.contains(r"-\d+:\d\d:\d\d")).then(pl.lit(-1, pl.Int128)).otherwise(pl.lit(1, pl.Int128))
    total = days * (24 * _MICROSECONDS["hour"]) + sign * clock
    endless = pl.when(text == "infinity").then(pl.lit(_ENDLESS, pl.Int128)).when(text == "-infinity")
    known = endless.then(pl.lit(-_ENDLESS, pl.Int128)).otherwise(total)
    # As text of a fixed width, so that a frame of keys has a place in Arrow: Int128 has none.
    return pl.when(text.is_not_null()).then((known + 5 * _ENDLESS).cast(pl.String))


def _timetz(text: pl.Expr) -> pl.Expr:
    """By the moment in UTC, then by the zone, the western one first: timetz_cmp_internal in date.c."""
    west = text.str.contains(r"-\d\d(:\d\d)*$")
    zone = (
        text.str.extract(r"[+-](\d\d)").cast(pl.Int64) * 3600
        + text.str.extract(r"[+-]\d\d:(\d\d)").cast(pl.Int64).fill_null(0) * 60
        + text.str.extract(r"[+-]\d\d:\d\d:(\d\d)").cast(pl.Int64).fill_null(0)
    )
    offset = pl.when(west).then(zone).otherwise(-zone)
    clock = (
        text.str.slice(0, 2).cast(pl.Int64) * _MICROSECONDS["hour"]
        + text.str.slice(3, 2).cast(pl.Int64) * _MICROSECONDS["minute"]
        + text.str.slice(6, 2).cast(pl.Int64) * _MICROSECONDS["second"]
        + text.str.extract(r"^\d\d:\d\d:\d\d\.(\d+)").str.pad_end(6, "0").cast(pl.Int64).fill_null(0)
    )
    return (clock + offset * 1_000_000) * 2**18 + offset


_NIBBLES: Final = {f"{digit:x}": f"{digit:04b}" for digit in range(16)}
_V6_GROUPS: Final = 4
_V6_DIGITS: Final = 32


def _digits(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Replace IPv4 addresses by their eight hexadecimal digits."""
    names = {str(number): f"{number:02x}" for number in range(256)}
    parts = pl.col(column).str.split(".")
    octets = [parts.list.get(n, null_on_oob=True).replace_strict(names, default=None) for n in range(4)]
    return frame.with_columns(pl.concat_str(octets).alias(column))


def _groups(part: pl.Expr) -> pl.Expr:
    filled = part.str.split(":").list.eval(pl.element().filter(pl.element() != "").str.zfill(_V6_GROUPS))
    return filled.list.join("")


def _inet(text: pl.Expr) -> pl.Expr:
    """By family, bits of the network, its length, then all bits: network_cmp_internal in network.c."""
    return text.map_batches(_addresses, return_dtype=pl.String, is_elementwise=True)


def _addresses(texts: pl.Series) -> pl.Series:
    """Return the keys of addresses; in steps, each of which looks at the one before."""
    frame = (
        texts.rename("text")
        .to_frame()
        .with_columns(
            address=pl.col("text").str.extract(r"^([^/]+)"), given=pl.col("text").str.extract(r"/(\d+)$").cast(pl.Int64)
        )
    )
    frame = frame.with_columns(six=pl.col("address").str.contains(":", literal=True))
    frame = frame.with_columns(
        v4=pl.when(~pl.col("six")).then("address"),
        tail=pl.when("six").then(pl.col("address").str.extract(r"(\d+\.\d+\.\d+\.\d+)$")),  # ::ffff:10.0.0.9
    )
    frame = _digits(_digits(frame, "v4"), "tail")
    head = pl.col("address").str.replace(r"\d+\.\d+\.\d+\.\d+$", "")
    ended = pl.concat_str(head, pl.col("tail").str.slice(0, 4), pl.lit(":"), pl.col("tail").str.slice(4, 4))
    whole = pl.when(pl.col("tail").is_not_null()).then(ended).otherwise(pl.when("six").then("address"))
    frame = frame.with_columns(halves=whole.str.split("::"))
    frame = frame.with_columns(
        left=_groups(pl.col("halves").list.get(0, null_on_oob=True)),
        right=_groups(pl.col("halves").list.get(1, null_on_oob=True).fill_null("")),
        length=pl.coalesce("given", pl.when("six").then(128).otherwise(32)),
    )
    missing = pl.lit("0").repeat_by(_V6_DIGITS - pl.col("left").str.len_chars() - pl.col("right").str.len_chars())
    frame = frame.with_columns(v6=pl.concat_str("left", missing.list.join(""), "right"))
    digits = pl.when("six").then("v6").otherwise("v4")
    frame = frame.with_columns(bits=digits.str.replace_many(list(_NIBBLES), list(_NIBBLES.values())))
    network = pl.col("bits").str.head(pl.col("length")).str.pad_end(128, "0")
    kind = pl.when("six").then(pl.lit("6")).otherwise(pl.lit("4"))
    return frame.select(pl.concat_str(kind, network, pl.col("length").cast(pl.String).str.zfill(3), "bits")).to_series()


def _lsn(text: pl.Expr) -> pl.Expr:
    halves = text.str.split("/")
    return pl.concat_str(halves.list.get(0).str.zfill(8), halves.list.get(1).str.zfill(8))


_KEYS: Final[dict[str, Callable[[pl.Expr], pl.Expr]]] = {
    "numeric": numerics.key,
    "interval": _interval,
    "timetz": _timetz,
    "inet": _inet,
    "cidr": _inet,
    "oid": lambda text: text.cast(pl.Int64),
    "pg_lsn": _lsn,
}

NAME: Final = re.compile(r"[a-z_][a-z0-9_]*")


def as_written(name: str) -> str:
    """Return a column's name as an expression has it."""
    return name if NAME.fullmatch(name) else '"' + name.replace('"', '""') + '"'
