"""Stage a chunk in DuckDB: rules in one pass, then duplicates; accepted rows and rejected records come out.

Rules come first, so that a record that is quarantined never wins over a good duplicate of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import duckdb
import polars as pl

from keyhaul.errors import ChunkError, ConfigError, StopRunError, safe_message
from keyhaul.mapping import split
from keyhaul.model import RECORD, Counts, Staged
from keyhaul.transform import MAX_ISOLATED_RECORDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keyhaul.config import Dedup, Rule
    from keyhaul.mapping import WriteColumn

CHUNK: Final = "chunk"
"""The name under which a rule could see the chunk; rules that do (a subquery) are refused."""

_SETTINGS: Final = {
    "threads": "1",
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}

REJECTED: Final[Mapping[str, pl.DataType]] = {
    RECORD: pl.Int64(),
    "stage": pl.String(),
    "rules": pl.List(pl.String),
    "message": pl.String(),
    "key": pl.String(),
    "data": pl.String(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule as the stage runs it: `sql` is true for a row that fails, and looks at `columns`."""

    name: str
    sql: str
    on_fail: str
    message: str
    at: str
    columns: frozenset[str] = frozenset()


def quoted(name: str) -> str:
    """Return a DuckDB identifier."""
    return '"' + name.replace('"', '""') + '"'


def compile_rules(rules: Sequence[Rule], schema: Mapping[str, pl.DataType]) -> tuple[Check, ...]:
    """Turn a job's rules into checks, and bind each against the columns that the transform leaves.

    As in a CHECK constraint, a rule that is NULL for a row passes. ``not_null`` becomes one check for
    each of its columns.

    Raises:
        ConfigError: a rule does not parse, names an unknown column, is not true or false, or looks at
            other rows; all offenders, each with its place.
    """
    checks: list[Check] = []
    problems: list[str] = []
    for rule in rules:
        if rule.check is None:
            checks += [
                Check(
                    name=f"not_null:{c}", sql=f"{quoted(c)} is null", on_fail=rule.on_fail, message=f"{c} is null", at=rule.at,
                    columns=frozenset({c}),
                )
                for c in rule.columns
            ]
            unknown = [c for c in rule.columns if c not in schema]
            if unknown:
                known = ", ".join(schema)
                problems.append(f"{rule.at}: check not_null: no column {', '.join(unknown)}, expected one of {known}")
            continue
        sql = f"not (\n{rule.check}\n)"
        columns = _columns_in(rule.check, schema)
        message = f"not {rule.check}"
        checks.append(Check(name=rule.name, sql=sql, on_fail=rule.on_fail, message=message[:300], at=rule.at, columns=columns))
    if not problems:
        problems = [problem for check in checks if (problem := _bind(check, schema))]
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(checks)


def _columns_in(text: str, schema: Mapping[str, pl.DataType]) -> frozenset[str]:
    """Return the columns that a rule names; DuckDB's names ignore case."""
    with _connect() as con:
        try:
            serialized = con.execute("select json_serialize_sql(?)", [f"select {text}"]).fetchone()
        except duckdb.Error:
            return frozenset(schema)
    found = {name.lower() for path in _column_references(json.loads(serialized[0]) if serialized else {}) for name in path}
    return frozenset(name for name in schema if name.lower() in found)


def _column_references(tree: Any) -> Iterator[list[str]]:  # noqa: ANN401 - parsed JSON
    if isinstance(tree, dict):
        if "column_names" in tree:
            yield tree["column_names"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from _column_references(branch)


def _bind(check: Check, schema: Mapping[str, pl.DataType]) -> str:
    """Return what is wrong with a check, or an empty string."""
    with _connect() as con:
        con.register(CHUNK, pl.DataFrame(schema=dict(schema)).to_arrow(compat_level=pl.CompatLevel.newest()))
        serialized = con.execute("select json_serialize_sql(?)", [f"select {check.sql}"]).fetchone()
        tree = json.loads(serialized[0]) if serialized else {}
        if tree.get("error") or len(tree.get("statements", [])) != 1:
            return f"{check.at}: read rule {check.name}: {tree.get('error_message', 'not one expression')}"
        if '"class":"SUBQUERY"' in serialized[0]:  # type: ignore[index]  # checked just above
            return (
                f"{check.at}: read rule {check.name}: it has a subquery, expected an expression over one row. "
                "Compare with another table after the load"
            )
        try:
            con.execute(f"select 1 from {CHUNK} where {check.sql}")
            condition = check.sql.removeprefix("not ")  # `not` would make a number true or false
            described = con.execute(f"describe select {condition} as x from {CHUNK}").fetchone()
        except duckdb.Error as error:
            text = str(error).strip().split("\n", 1)[0].rstrip("!")
            known = f", expected one of {', '.join(schema)}" if "not found in FROM clause" in text else ""
            return f"{check.at}: read rule {check.name}: {text}{known}"
        if described and described[1] != "BOOLEAN":
            return f"{check.at}: read rule {check.name}: its type is {described[1]}, expected true or false"
    return ""


def _connect() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(":memory:", config=dict(_SETTINGS))
    con.execute("load icu")
    con.execute("set timezone = 'UTC'")
    con.execute("set lock_configuration = true")
    return con


class Stager:
    """Rules and duplicates for the chunks of one worker; has a DuckDB connection of its own.

    A connection shared between threads returned wrong rows (duckdb 2.0), so a stager is never shared.
    """

    def __init__(
        self,
        checks: Sequence[Check],
        dedup: Dedup | None,
        columns: Sequence[WriteColumn],
        key: Sequence[str],
    ) -> None:
        """Open the worker's own database in memory and lock it down.

        Args:
            checks: from `compile_rules`.
            dedup: keep one row of each group, or None.
            columns: how each column is written, for the check that its values fit.
            key: the key's columns in the source frame, for the quarantine.
        """
        self._checks = tuple(checks)
        self._dedup = dedup
        self._columns = tuple(columns)
        self._key = tuple(key)
        self._con = _connect()

    def close(self) -> None:
        """Free the database."""
        self._con.close()

    def stage(
        self,
        source: pl.DataFrame,
        frame: pl.DataFrame,
        failed: pl.DataFrame,
        columns: Sequence[WriteColumn] | None = None,
    ) -> Staged:
        """Split a transformed chunk into rows to load and records to quarantine.

        Args:
            source: the chunk as read, with ``_record``; the quarantine keeps these values.
            frame: the chunk after the transform.
            failed: records that the transform could not do, as ``_record`` and ``message``.
            columns: the mapping of this chunk, when it is not the run's.

        Raises:
            StopRunError: a row fails a rule with ``on_fail: stop``.
            ChunkError: a rule cannot be evaluated for too many records.
        """
        filtered = source.height - failed.height - frame.height
        rejected = [failed.select(RECORD, rules=pl.lit(["transform"]), message="message", stage=pl.lit("transform"))]
        warned: dict[str, int] = {}
        if self._checks and frame.height:
            frame, broken = self._apply_rules(frame, warned)
            rejected.append(broken)
        frame, misfits = split(frame, columns or self._columns)
        rejected.append(misfits.with_columns(stage=pl.lit("type")))
        frame, duplicate = self._deduplicate(frame)
        whole = pl.concat([part.select(RECORD, "stage", "rules", "message") for part in rejected])
        return Staged(
            accepted=frame,
            rejected=self._with_records(whole, source),
            counts=Counts(read=source.height, filtered=filtered, duplicate=duplicate, quarantined=whole.height),
            warned=warned,
        )

    # --- rules -----------------------------------------------------------------------------------

    def _apply_rules(self, frame: pl.DataFrame, warned: dict[str, int]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the rows that pass, and the records that do not with the names of all rules they fail."""
        found = pl.concat(list(self._failing(frame)))
        names = [check.name for check in self._checks]
        for check in self._checks:
            count = int(found[check.name].sum())
            if count and check.on_fail == "stop":
                msg = (
                    f"check rule {check.name}: {count:,} rows of this chunk fail it, and it says on_fail: stop. "
                    "Mend the source, or let the rule quarantine"
                )
                raise StopRunError(msg)
            if count and check.on_fail == "warn":
                warned[check.name] = count
        blocking = [check for check in self._checks if check.on_fail != "warn"]
        guilty = found.filter(pl.any_horizontal([pl.col("_error").is_not_null(), *(pl.col(c.name) for c in blocking)]))
        rules = pl.concat_list(pl.when(pl.col(name)).then(pl.lit(name)) for name in names).list.drop_nulls()
        messages = pl.concat_list(
            [pl.col("_error"), *(pl.when(pl.col(c.name)).then(pl.lit(c.message)) for c in self._checks)]
        ).list.drop_nulls()
        broken = guilty.select(
            RECORD,
            pl.lit("rule").alias("stage"),
            pl.when(rules.list.len() > 0).then(rules).otherwise(pl.lit(["rule_error"])).alias("rules"),
            messages.list.join("; ").alias("message"),
        )
        if not broken.height:
            return frame, broken
        return frame.filter(~pl.col(RECORD).is_in(broken[RECORD].implode())), broken

    def _failing(self, frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Yield, for each record that fails a rule, which ones; halves the chunk where a rule raises."""
        flags = ", ".join(f"coalesce({c.sql}, false) as {quoted(c.name)}" for c in self._checks)
        query = f"select {RECORD}, {flags} from {CHUNK}"
        if len(self._checks) >= 1:
            query = f"select * from ({query}) where {' or '.join(quoted(c.name) for c in self._checks)}"
        pending = [frame]
        failures = 0
        while pending:
            part = pending.pop()
            try:
                found = self._query(query, part)
                yield found.with_columns(pl.lit(None, pl.String).alias("_error"))
            except duckdb.Error as error:
                if part.height > 1:
                    middle = part.height // 2
                    pending += [part[middle:], part[:middle]]
                    continue
                failures += 1
                if failures > MAX_ISOLATED_RECORDS:
                    msg = (
                        f"check rules: they cannot be evaluated for more than {MAX_ISOLATED_RECORDS} records: "
                        f"{safe_message(error)}"
                    )
                    raise ChunkError(msg) from error
                flags_false = [pl.lit(value=False).alias(c.name) for c in self._checks]
                yield part.select(pl.col(RECORD), *flags_false, pl.lit(safe_message(error)).alias("_error"))

    def _query(self, query: str, frame: pl.DataFrame) -> pl.DataFrame:
        self._con.register(CHUNK, frame.to_arrow(compat_level=pl.CompatLevel.newest()))
        try:
            result: Any = self._con.sql(query).to_arrow_table()
        finally:
            self._con.unregister(CHUNK)
        table = pl.from_arrow(result)
        if not isinstance(table, pl.DataFrame):  # pragma: no cover - a table never becomes a series
            msg = "stage chunk: DuckDB returned no table"
            raise ChunkError(msg)
        return table.with_columns(pl.col(RECORD).cast(pl.Int64)) if RECORD in table.columns else table

    # --- duplicates ------------------------------------------------------------------------------

    def _deduplicate(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
        """Keep one row of each group; rows with a NULL in the dedup columns are nobody's duplicates.

        The cheap test comes first (0.03 s per million rows against 0.12 s for the window): most chunks
        have no duplicates at all.
        """
        if self._dedup is None or frame.height < 2:  # noqa: PLR2004 - one row has no duplicate
            return frame, 0
        on = list(self._dedup.on)
        keyed = frame.select(on).drop_nulls()
        if keyed.n_unique() == keyed.height:
            return frame, 0
        direction = "desc" if self._dedup.keep == "last" else "asc"
        wanted = [f"{quoted(column)} {direction} nulls last" for column in self._dedup.order_by]
        ties = [quoted(c) for c in frame.columns if c not in on and c not in self._dedup.order_by and c != RECORD]
        order = ", ".join([*wanted, *ties, RECORD])
        present = " and ".join(f"{quoted(column)} is not null" for column in on)
        query = (
            f"select {RECORD} from {CHUNK} where {present} qualify row_number() over "
            f"(partition by {', '.join(map(quoted, on))} order by {order}) > 1"
        )
        losers = self._query(query, frame)
        return frame.filter(~pl.col(RECORD).is_in(losers[RECORD].implode())), losers.height

    # --- the quarantine's records ----------------------------------------------------------------

    def _with_records(self, rejected: pl.DataFrame, source: pl.DataFrame) -> pl.DataFrame:
        """Add each rejected record's key and its whole source row as JSON."""
        if not rejected.height:
            return pl.DataFrame(schema=REJECTED)
        rows = source.filter(pl.col(RECORD).is_in(rejected[RECORD].implode()))
        fields = ", ".join(
            f"{_json_key(name)}: {_json_value(quoted(name), dtype)}" for name, dtype in rows.schema.items() if name != RECORD
        )
        keys = [f"{quoted(name)}::varchar" for name in self._key]
        any_null = " or ".join(f"{quoted(name)} is null" for name in self._key)
        key = keys[0] if len(keys) == 1 else f"to_json([{', '.join(keys)}])::varchar"
        query = (
            f"select {RECORD}, case when {any_null} then null else {key} end as key, "
            f"to_json({{{fields}}})::varchar as data from {CHUNK}"
        )
        described = self._query(query, rows)
        return rejected.join(described, on=RECORD, how="left").select(
            pl.col(name).cast(dtype) for name, dtype in REJECTED.items()
        )


def _json_key(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def _json_value(column: str, dtype: pl.DataType) -> str:
    """Return SQL that keeps a value whole in JSON: what JSON has no number for becomes text."""
    if isinstance(dtype, pl.Binary):
        return f"'\\x' || lower(hex({column}))"
    if dtype.is_float():
        return f"case when isfinite({column}) then to_json({column}) else to_json({column}::varchar) end"
    return column
