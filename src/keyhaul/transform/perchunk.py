"""A lookup that is too large to hold: for each chunk, only the rows with the chunk's keys are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from keyhaul.errors import ChunkError, ConfigError
from keyhaul.transform.lookup import Held, hold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.lookupstep import Lookup
    from keyhaul.transform.lookup import LookupRows

UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
"""As PostgreSQL prints it; text in another form equals no uuid, byte by byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A lookup whose rows are read for each chunk; for the rest it does what `Held` does.

    Attributes:
        lookup: what it does.
        keys: column of the chunk → its type.
        rows: where they are; shared by the workers.
        taken: the new columns and their types, in order.
    """

    lookup: Lookup
    keys: Mapping[str, pl.DataType]
    rows: LookupRows
    taken: Mapping[str, pl.DataType]

    def join(self, lazy: pl.LazyFrame) -> pl.LazyFrame:
        """Add the taken columns; NULL where there is no match."""
        chunk = lazy.collect()
        return self._held(chunk).join(chunk.lazy())

    def split(self, chunk: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Add the taken columns, and separate the records without match; see `Held.split`."""
        return self._held(chunk).split(chunk)

    def _held(self, chunk: pl.DataFrame) -> Held:
        keys = self._distinct(chunk)
        frame = self.rows.fetch(keys) if keys.height else pl.DataFrame(schema=self.rows.schema)
        try:
            return hold(self.lookup, frame, self.keys)
        except ConfigError as error:
            raise ChunkError(str(error)) from error

    def _distinct(self, chunk: pl.DataFrame) -> pl.DataFrame:
        """Return the chunk's keys in the lookup's types and names; one that has no equal there is left out."""
        wanted, conditions = [], [pl.lit(value=True)]
        for column in self.keys:
            name = self.lookup.on[column]
            wanted.append(pl.col(column).cast(self.rows.schema[name], strict=False).alias(name))
            if name in self.rows.uuids:
                conditions.append(pl.col(name).str.contains(UUID))
        return chunk.select(wanted).drop_nulls().filter(conditions).unique()


def fetch_per_chunk(lookup: Lookup, rows: LookupRows, keys: Mapping[str, pl.DataType]) -> Fetched:
    """Return the step for a lookup that is read for each chunk.

    Args:
        lookup: what it does.
        rows: where they are.
        keys: column of the chunk → its type.

    Raises:
        ConfigError: the types of a key differ, or a taken column has a type that PostgreSQL does not know.
    """
    problems = []
    for column, have in keys.items():
        name = lookup.on[column]
        its: Any = rows.schema[name]
        numbers = have.is_integer() and its.is_integer()
        if not (numbers or (isinstance(have, pl.String) and isinstance(its, pl.String))):
            problems.append(
                f"{lookup.at}: compare {name} of {lookup.name}: got {its}, expected {have} as {column} has in the "
                "chunk. Cast one of them to the other, or leave per_chunk out"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    taken = hold(lookup, pl.DataFrame(schema=rows.schema), keys).taken
    return Fetched(lookup=lookup, keys=dict(keys), rows=rows, taken=taken)
