"""Data-quality checks in PostgreSQL: the server counts, in one read-only transaction that sees one moment."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import psycopg

from keyhaul.errors import ConfigError, first_line, without_values
from keyhaul.postgres import catalog, pgtypes
from keyhaul.postgres.dsn import redact
from keyhaul.quality import patterns as quality_patterns
from keyhaul.quality.sql import POSTGRES, ROW
from keyhaul.quoting import quote_name, quote_text
from keyhaul.sessions.connecting import connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from keyhaul.config.checkkinds import Where
    from keyhaul.postgres.catalog import Relation
    from keyhaul.postgres.dsn import Dsn

BATCH_ROWS: Final = 10_000
SAMPLED_FROM_BLOCKS: Final = 5_000
"""Blocks of a table from which on a sample pays: 40 MB."""
SAMPLE_BLOCKS: Final = 250
MOST_USUAL: Final = 10_000
_BLOCK_BYTES: Final = "current_setting('block_size')::bigint"
_SUBQUERIES: Final = frozenset({"select", "table", "values"})
_ESCAPED: Final = frozenset({("e", "'"), ("u", "&'"), ("u", '&"')})
_LEXEME: Final = re.compile(
    r"""(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<word>[^\W\d][\w$]*)|(?P<refused>--|/\*|;|\$)|.""",
    re.DOTALL | re.VERBOSE,
)


class PostgresSystem:
    """A table, view or query of a PostgreSQL database, as the checks see it; see `quality_sql.System`."""

    def __init__(self, dsn: Dsn, where: Where, *, key: tuple[str, ...], timeout_seconds: int, place: str = "") -> None:
        """Connect, begin the transaction and read the columns.

        Args:
            dsn: which database.
            where: a table or query there.
            key: columns that name a row; empty for the table's primary key.
            timeout_seconds: longest time of one statement.
            place: what the database is called in results; host, port and name by default.

        Raises:
            ConnectError: the database cannot be reached.
            ConfigError: there is no such table, or the query is none.
        """
        self._dsn = dsn
        self.dialect = POSTGRES
        settings = {
            **pgtypes.SESSION_SETTINGS,
            "statement_timeout": f"{timeout_seconds}s",
            "idle_session_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
            "default_transaction_read_only": "on",
        }
        self._conn = connect(dsn, "source", application_name="keyhaul check", settings=settings)
        try:
            self._conn.execute("begin isolation level repeatable read read only")
            relation = self._describe(where)
        except BaseException:
            self._conn.close()
            raise
        self.label = f"{place or dsn.identity} {relation.label}" + (f" {_digest(where.query)}" if where.query else "")
        self.columns: Mapping[str, str] = {column.name: column.pg_type for column in relation.columns}
        self._relation = relation
        self._unmatched: dict[tuple[str, str], str] = {}
        self.key = key or relation.primary_key
        item = relation.from_item.as_string(self._conn)
        self.from_item = f"{item} as {ROW}" if relation.oid is not None else f"(select * from {item}) as {ROW}"

    def _describe(self, where: Where) -> Relation:
        if where.query is not None:
            if problem := self.refuses(where.query):
                raise ConfigError(f"read query: {problem}, expected one SELECT")
            return catalog.describe_query(self._conn, where.query, "query")
        found = catalog.resolve(self._conn, where.table or "")
        if found is None:
            msg = f"check {where.table}: there is no such table in {self._dsn.label}. Correct table:, or the uri"
            raise ConfigError(msg)
        return catalog.describe_table(self._conn, *found)

    def fetch(self, query: str) -> list[tuple[object, ...]]:
        """Run a query and return its rows.

        Raises:
            ConfigError: the server refuses it, or a row makes it fail; the message has no row values.
        """
        try:
            with self._conn.transaction():  # a savepoint: one failing check leaves the moment to the others
                return self._conn.execute(query.encode()).fetchall()
        except psycopg.Error as error:
            raise ConfigError(self._told(error)) from error

    def stream(self, query: str) -> Iterator[pa.RecordBatch]:
        """Run a query and yield its rows, every column as PostgreSQL's own text, `BATCH_ROWS` at a time.

        The first batch is empty, so that a query without rows tells its columns.
        """
        import pyarrow as pa

        try:
            with self._conn.transaction(), self._conn.cursor("keyhaul_check") as cursor:
                cursor.execute(query.encode())
                names = [column.name for column in cursor.description or ()]
                schema = pa.schema([(name, pa.string()) for name in names])
                yield pa.RecordBatch.from_pylist([], schema=schema)
                while rows := cursor.fetchmany(BATCH_ROWS):
                    columns = [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]
                    yield pa.record_batch(columns, schema=schema)
        except psycopg.Error as error:
            raise ConfigError(self._told(error)) from error

    def refuses(self, query: str) -> str:
        """Return why a query cannot be asked, or an empty string; the server parses it as one statement, not more."""
        try:
            with self._conn.transaction(force_rollback=True):
                catalog.check_statement(self._conn, query)
        except psycopg.Error as error:
            return without_values(redact(first_line(error), self._dsn))
        return ""

    def unmatched(self, column: str, pattern: str) -> str:
        """Return the condition that is true where a pattern (ARE) is nowhere in a column's text; NULL for NULL."""
        key = (column, pattern)
        if key not in self._unmatched:
            self._unmatched[key] = self._without(f"{ROW}.{quote_name(column)}", pattern, self.columns[column])
        return self._unmatched[key]

    def _without(self, column: str, pattern: str, kind: str) -> str:
        plain = f"not ({column} ~ {quote_text(pattern)})"
        if not re.fullmatch(r"text|character varying(\(\d+\))?", kind):
            return plain
        nothing = f"(select {column}::text from {self.from_item} where false)"  # it brings the column's collation
        try:
            self.fetch(f"select coalesce({nothing}, '') ~ {quote_text(pattern)}")
            usual = "" if quality_patterns.as_like(pattern) else self._usual(column, pattern)
        except ConfigError:
            # A wrong pattern, or a collation without regular expressions: the check itself will tell. A table that
            # gives no sample: the pattern alone will do.
            return plain
        cheaper = quality_patterns.unmatched(column, pattern)
        return f"{quality_patterns.by_bytes(column)} not in ({usual}) and {cheaper}" if usual else cheaper

    def _usual(self, column: str, pattern: str) -> str:
        """Return a query for values that many rows have and that match; empty where they are few, or the table small.

        To find a value in them takes a third of the time of a short regular expression (0.10 and 0.31 µs of CPU a
        row). They come from a sample of the table's blocks, are judged by the pattern itself, and never leave the
        server; a value that is not among them is judged by itself, so that the sample decides about speed alone.
        """
        relation = self._relation
        if relation.oid is None or relation.kind not in {"r", "m"}:
            return ""
        blocks = int(str(self.fetch(f"select pg_relation_size({relation.oid}) / {_BLOCK_BYTES}")[0][0]))
        if blocks < SAMPLED_FROM_BLOCKS:
            return ""
        item = relation.from_item.as_string(self._conn)
        percent = 100 * SAMPLE_BLOCKS / blocks
        sample = f"(select {column}::text as v from {item} as {ROW} tablesample system ({percent:.6f})) as s"
        groups = f'select count(*) as n from {sample} where v is not null group by v collate "C"'
        ((total, repeated, values),) = self.fetch(
            "select coalesce(sum(n), 0), coalesce(sum(n) filter (where n > 1), 0), count(*) filter (where n > 1) "
            f"from ({groups}) as g"
        )
        if not total or int(str(repeated)) * 2 < int(str(total)) or int(str(values)) > MOST_USUAL:
            return ""
        return (
            f'select s.v collate "C" from {sample} where s.v ~ {quote_text(pattern)} '
            f'group by s.v collate "C" having count(*) > 1'
        )

    def misread(self, expression: str) -> str:
        """Return why a text is not one boolean expression over one row; only the server's parser sees it.

        It must be right alone as well as in parentheses: `a) or (b` is so only inside them, `a from b` only
        outside. As its quotes and parentheses are then balanced, it cannot reach beyond ours.
        """
        for lexeme in _LEXEME.finditer(expression):
            word = (lexeme["word"] or "").lower()
            if lexeme["refused"]:
                what = {"--": "a comment", "/*": "a comment", "$": "a $"}.get(lexeme["refused"], "a semicolon")
                return f"it has {what}, expected an expression alone"
            if word in _SUBQUERIES:
                return f"it has a subquery ({word}), expected an expression over one row"
            if (word, expression[lexeme.end() :][: 1 + (word == "u")]) in _ESCAPED:
                return "it has a string with escapes, expected plain quotes"
        for query in (
            f"select\n{expression}\nfrom {self.from_item}",
            f"select 1 from {self.from_item} where not (\n{expression}\n)",
        ):
            if problem := self.refuses(query):
                return problem
        return ""

    def misread_pattern(self, pattern: str) -> str:
        """Return why a text is no regular expression (ARE), or an empty string."""
        try:
            self.fetch(f"select '' ~ {quote_text(pattern)}")
        except ConfigError as error:
            return str(error)
        return ""

    def has_type(self, column: str, wanted: str) -> str:
        """Return what is wrong with a column's type, or an empty string; without a modifier, any one is right."""
        have = self.columns[column]
        if "(" in wanted:
            try:
                with self._conn.transaction():
                    query = f"select cast(null as {wanted}) as x"
                    (meant,) = catalog.describe_query(self._conn, query, "type").columns
            except ConfigError:
                return f"there is no type {wanted}"
            return "" if have == meant.pg_type else f"{have}, expected {wanted}"
        found = self.fetch(f"select pg_catalog.format_type(to_regtype({quote_text(wanted)}), null)")[0][0]
        if found is None:
            return f"there is no type {wanted}"
        plain = re.sub(r"\([0-9,-]+\)", "", have)
        return "" if {have, plain} & {wanted, str(found)} else f"{have}, expected {wanted}"

    def other(self, where: Where) -> str:
        """Return another table or query of the same database, for FROM."""
        relation = self._describe(where)
        item = relation.from_item.as_string(self._conn)
        return item if relation.oid is not None else f"(select * from {item})"

    def row_number(self) -> str:
        """Return an empty string: a place in a table (ctid) does not name a row for long."""
        return ""

    def close(self) -> None:
        """Close the connection, and with it the transaction."""
        self._conn.close()

    def _told(self, error: psycopg.Error) -> str:
        return without_values(redact(" ".join(first_line(error).split()), self._dsn))


def _digest(query: str) -> str:
    """Return a short name of a query: results of two queries are not compared with each other."""
    return hashlib.sha256(query.encode()).hexdigest()[:8]
