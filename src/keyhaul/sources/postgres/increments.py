"""What is new in PostgreSQL since a value: every value travels as text and is compared in the column's own type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from keyhaul.errors import ConfigError, RefusedError
from keyhaul.postgres import catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyhaul.config.parts import Incremental
    from keyhaul.model import Column
    from keyhaul.sources.postgres.sql import SqlSource

_LOWEST: Final = {"int2": "-32768", "int4": "-2147483648", "int8": "-9223372036854775808"}
_MOMENTS: Final = frozenset({"date", "timestamp", "timestamptz"})
_NUMBERS: Final = frozenset({*_LOWEST, "numeric"})


class PostgresIncrements:
    """See `sources.source.Increments`."""

    def __init__(self, source: SqlSource, limit: Callable[[str], None]) -> None:
        """Take the open source; `limit` takes the condition that all its chunks have from then on."""
        self._source = source
        self._limit = limit

    def check(self, wanted: Incremental) -> None:
        """Refuse a column that is not there, that has no fitting order, or that the lag cannot be taken from."""
        relation = self._source.relation
        column = relation.column(wanted.column)
        if column is None:
            listed = ", ".join(column.name for column in relation.columns)
            msg = (
                f"read incrementally: {relation.label} has no column {wanted.column}, expected one of {listed}. "
                "Change --incremental or incremental.column"
            )
            raise ConfigError(msg)
        if column.base_type not in _MOMENTS | _NUMBERS:
            msg = (
                f"read incrementally: {column.name} is {column.pg_type}, expected an integer, numeric, date or "
                "timestamp that grows with every change. Change --incremental or incremental.column"
            )
            raise RefusedError(msg)
        lag = wanted.lag
        moments = column.base_type in _MOMENTS
        if (lag.seconds if moments else lag.number) is None:
            form = "a duration such as 5m, 2h or 1d" if moments else "a number such as 100"
            msg = (
                f"read incrementally: the lag of {column.name} ({column.pg_type}) is {lag}, expected {form}. "
                "Change --lag"
            )
            raise RefusedError(msg)

    def since(self, wanted: Incremental, watermark: str) -> str:
        """Return the watermark less the lag, rounded down to a value of the column's type."""
        column = self._column(wanted.column)
        high = _literal(column, watermark)
        if column.base_type in _MOMENTS:
            lower = sql.SQL("{} - make_interval(secs => {})").format(high, sql.Literal(float(wanted.lag.seconds or 0)))
        else:
            lower = sql.SQL("{}::numeric - {}").format(high, sql.Literal(wanted.lag.number or 0))
            if column.base_type in _LOWEST:
                lower = sql.SQL("greatest(floor({}), {})").format(lower, sql.SQL(_LOWEST[column.base_type]))
        row = self._ask(sql.SQL("select ({})::pg_catalog.{}::text").format(lower, sql.Identifier(column.base_type)))
        return str(row[0])

    def highest(self, column: str, since: str | None, before: str | None) -> str | None:
        """Return the greatest value: from the index when one leads with the column. Infinity and NaN end nothing."""
        found, name = self._column(column), sql.Identifier(column)
        conditions: list[sql.Composable] = [_from(found, since)] if since is not None else []
        if found.base_type not in _LOWEST:
            conditions.append(sql.SQL("{} < {}").format(name, _literal(found, "infinity")))
        where = sql.SQL(" and ").join(conditions) if conditions else sql.SQL("true")
        item = self._source.relation.from_item
        highest = sql.SQL("(select max({}) from {} where {})").format(name, item, where)
        if before is not None:  # rows deleted since do not move it back
            highest = sql.SQL("greatest({}, {})").format(highest, _literal(found, before))
        row = self._ask(sql.SQL("select {}::pg_catalog.{}::text").format(highest, sql.Identifier(found.base_type)))
        return None if row[0] is None else str(row[0])

    def warnings(self, column: str, since: str | None, watermark: str | None) -> Sequence[str]:
        """Return sentences: no index, a value in the future, rows with a NULL."""
        relation, conn, found = self._source.relation, self._source.conn, list[str]()
        described, name = self._column(column), sql.Identifier(column)
        indexed = relation.oid is not None and catalog.leads_an_index(conn, relation.oid, [column])
        if not indexed and relation.kind in {"r", "p", "m"} and since is not None:
            found.append(f"no index of {relation.label} leads with {column}: the table is scanned to find what is new")
        if described.base_type in _MOMENTS and watermark is not None:
            late = sql.SQL("select {}::timestamptz > now() + interval '1 day'").format(_literal(described, watermark))
            if self._ask(late)[0]:
                found.append(
                    f"the watermark of {column} is {watermark}, in the future: rows that change before that, by more "
                    "than the lag, will not be read by the next runs. Correct those rows and give --full"
                )
        if indexed and not described.not_null:
            item = relation.from_item
            if self._ask(sql.SQL("select exists(select from {} where {} is null)").format(item, name))[0]:
                runs = "only the first run or --full reads them" if since is None else "this run does not read them"
                found.append(f"there are rows of {relation.label} whose {column} is NULL: {runs}")
        return found

    def limit(self, column: str, since: str | None) -> None:
        """Plan and read only rows from `since` on; NULL is not among them. None: all rows."""
        self._limit(_from(self._column(column), since).as_string(None) if since is not None else "")

    def _column(self, name: str) -> Column:
        column = self._source.relation.column(name)
        if column is None:  # pragma: no cover - check has looked
            raise ConfigError(name)
        return column

    def _ask(self, query: sql.Composed) -> Sequence[Any]:
        row = self._source.conn.execute(query).fetchone()
        return row if row is not None else (None,)


def _literal(column: Column, text: str) -> sql.Composed:
    # The bare type: a modifier would round a bound, a domain might refuse it.
    return sql.SQL("{}::pg_catalog.{}").format(sql.Literal(text), sql.Identifier(column.base_type))


def _from(column: Column, since: str) -> sql.Composed:
    return sql.SQL("{} >= {}").format(sql.Identifier(column.name), _literal(column, since))
