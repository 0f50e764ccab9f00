"""docs/configuration.md, written from the model: ``python tools/configdoc.py > docs/configuration.md``."""

from __future__ import annotations

import sys

from keyhaul.config.job import Setting, settings
from keyhaul.config.sourcekinds import KINDS
from keyhaul.postgres.dsn import OPTIONS

_HEAD = """\
# Configuration

Written from the model by `python tools/configdoc.py > docs/configuration.md`; a test fails when it differs.

A job is one YAML file, `etl chunked` flags, `ETL_*` variables, or a mix of them. Where several give a
value, the first of these wins: flag, variable, file, default. `--table` takes the place of a `query` in
the file, and the reverse; `ETL_TABLE` and `ETL_QUERY` likewise. Steps from `--set` and then `--where`
come after the file's steps, rules from `--rule` after the file's rules (in `etl replay`, where `--rule`
chooses records, `--check` gives rules). A variable that is empty counts
as unset; an `ETL_*` variable that is not listed here is ignored.

## Settings

| key | value | default | flag | variable | meaning |
|---|---|---|---|---|---|
"""

_TAIL = """
Flags and variables name several columns as `a,b`; a name with a comma stands in double quotes.

## Auto chunks

`chunk: auto` stands for `chunk: {}`, a mapping with the settings `chunk.…` above, all by default. The plan is then cut
finely, and neighbouring cuts are merged when a worker takes them, to chunks of about `target_seconds` at the pace that
was measured last. A worker takes about four times `max_bytes` of memory at the most; where `memory_limit` allows less,
chunks stay smaller. With `rate_limit` a chunk has at most a worker's part of what may be read in that time. `auto` is
for jobs whose pace or rows are not known beforehand: a slow network, wide rows, an expensive view. It is refused with a
dedup whose columns do not contain the key.

## Incremental jobs

`incremental: {column: updated_at, lag: 5m}`: the first run reads all rows; each later one only those whose column is
at or above the watermark (the column's highest value in the last done run's snapshot) less the lag. Rows that are
read a second time count as unchanged.

- The lag must be longer than any transaction that writes to the source: a row whose moment is older than the watermark
less the lag when it is committed is not seen.
- Rows deleted in the source stay in the target. A row whose column is NULL is read by the first run only.
- A run that was stopped goes on with its own bound; its watermark counts only when it is done. `--fresh` gives up what
is unfinished and is still incremental; `--full` reads all rows and sets the watermark anew.
- A record in quarantine is read again by later runs when it changes, or lies within the lag; a row at the watermark
itself is read by each of them, and quarantined again. `etl replay RUN` brings the others in; `etl replay last` names
the older runs that have unresolved records, and then ends with code 1.
- A run whose target is gone or empty, or was replaced or emptied by another run since the job has read all rows (but
  for a replace with all rows of the same source, by the same steps, while nobody loaded the table), is
refused: `--full`.
- A changed transform or rule concerns the rows that are read from then on; `--full` loads all of them again.
- The mode is upsert, or skip for a source in which rows are only added; append and replace are refused.

## Kinds of sources

The kind of a source follows from its URI's scheme or its path's ending; `kind:` in a job file says it for a file with
another ending. A setting that only another kind has is refused. `--source` and `ETL_SOURCE_URL` take the place of the
file's `uri` or `path`.

| kind | known by | key |
|---|---|---|
KINDS
`sqlite:///shop.db` is a path from the current directory, `sqlite:////data/shop.db` one from the root.

## Connection strings

`postgresql://user:password@host:5432/dbname`, or `embedded` for the PostgreSQL that comes with keyhaul. In
user, password and name, percent-encode what has a meaning in a URI: `@` is `%40`, `/` is `%2F`, `#` is
`%23`, `%` is `%25`, `?` is `%3F`. A socket: `postgresql://user@%2Fvar%2Frun%2Fpostgresql:5432/dbname`. After a `?`
may stand, joined by `&`: OPTIONS.

A server on another machine must prove who it is: without an `sslmode`, a host that is neither a socket nor
`localhost` nor 127.… nor ::1 is `verify-full`, against ~/.postgresql/root.crt or else the system's certificates.
`sslrootcert=FILE` names another CA, `sslmode=require` encrypts without that proof, `sslmode=disable` does neither.

## Transform

A list; each step is a mapping with one key, and the steps run in their order.

| step | example | does |
|---|---|---|
| `set` | `set: {speed: "distance / hours"}` | adds or replaces columns; Polars SQL expressions, which all see the \
columns as they were before the step |
| `where` | `where: "year = 2013"` | keeps the rows for which the Polars SQL condition is true; the others count \
as filtered |
| `rename` | `rename: {old: new}` | renames columns |
| `drop` | `drop: [a, b]` or `drop: a` | leaves columns out |
| `lookup` | `lookup: {source: {file: airlines.csv}, on: carrier, take: {airline: name}}` | takes columns from a \
table, query or file by key; see below |
| `python` | `python: "module:function"` | calls a function from LazyFrame to LazyFrame; only with `--allow-python` |

A Polars SQL expression has at most 500 operators, keywords and brackets. About 60 operators can follow each other, as
in `a = 1 or a = 2 or …` (20 in arithmetic), and 45 brackets can stand in each other; in a rule it is 300 of both. A
list `in (…)` may have 10,000 values.

### Lookups

| key | value | default | meaning |
|---|---|---|---|
| `source` | a mapping with one of `table`, `query`, `file` | required | `table: public.airlines` or \
`query: "select …"`, read in the run's snapshot of the job's source, or from another database with `uri:`; \
`file:` ends in .csv or .parquet, its path is from the current directory |
| `on` | a column, a list, or a mapping from column to the lookup's column | required | what must be equal; NULL \
equals nothing |
| `take` | a column, a list, or a mapping from new column to the lookup's column | required | what is added |
| `missing` | `keep` or `quarantine` | `keep` | a record without match gets NULLs, or goes to quarantine (stage \
`lookup`, rule `lookup:NAME`); a NULL in `on` has no match |
| `first` | a column of the lookup |  | of several rows with one key, the one with the lowest value here is taken \
(NULL last, text by its bytes); without it several rows with one key are refused |
| `limit_mb` | a whole number from 1 | `256` | the most it may hold in memory, in MB of 1,000,000 bytes |
| `per_chunk` | true or false | `false` | the rows are not held: each chunk reads those with its keys, from the job's \
source; see below |
| `name` | 1 to 56 of letters, digits, _ . - | the table's or file's name, or `query` | NAME in the quarantine |

A lookup is read once, before the first row, and held in memory by all workers together. Both sides of `on` have one
type, or are integers, or the lookup's values become the chunk's type without a change; text is compared byte by byte.
A CSV file has a first line with names; a column's type is what all its values are, text for a key that is compared
with text (so that `007` stays), and an empty field is NULL. A taken column counts as computed: later steps and rules
may use it.

With `per_chunk: true` a lookup may be of any size: for each chunk the rows with the chunk's keys are read, in the run's
snapshot, each time over a connection of its own. It needs an index on the key there. The results are those of a held
lookup, but several rows with one key are found only when a chunk has that key, and then fail that chunk; `limit_mb`
is for the rows of one chunk. Its keys are integers, text, varchar or uuid, in a table or query of the job's source.

## Rules

A mapping from a rule's name to a condition in DuckDB SQL, or to `{check: "condition", on_fail: quarantine}`.
`on_fail` is `quarantine` (the record is set aside, the default), `warn` (it is loaded and counted) or `stop`
(the run stops and can be resumed). A condition that is NULL passes. `not_null: [a, b]` is a rule of its own.

## Rules across the run

`run_rules` is a list, or a mapping from name to rule; each is checked on the whole target table after the load. A
rule that fails ends the run with exit code 1 (`on_fail: error`, the default) or is only told (`on_fail: warn`); the
rows stay loaded. In mode replace the fresh table is checked before it takes the target's place: a rule that fails
drops it, and the old table stays.

| rule | holds when |
|---|---|
| `unique: [customer, day]` | no two rows have the same values; a row with a NULL there is like no other |
| `references: {column: customer, table: public.customers, to: id}` | every value is in that table of the target \
(`to` is the same name by default; `columns` for several); a row with a NULL there passes |
| `row_count: {min: 1, max: 5000000}` | the table has so many rows |
| `equals_source: "sum(amount)"` | the SQL aggregate gives the same in the target and over all rows of the source \
table or query, in the run's snapshot; compared exactly, 1.0 is 1.00 |

`name:` names a rule of a list. All are bound to the real tables before the first row moves. After a resumed run
`equals_source` looks at a newer snapshot than the first chunks did, and says so. A replay does not check them.

## Several tables from one record

`targets` is a list of tables that are there; each record, after transform, rules and dedup, becomes rows of all of
them, in the chunk's one transaction. A record that one table rejects is in none of them: it is quarantined whole.

```yaml
targets:
  - table: public.customers
    columns: {email: customer_email, name: "initcap(customer_name)"}
    mode: upsert
    conflict: email
  - table: public.orders
    columns:
      id: id
      customer_id: {parent: public.customers, column: id}
      public_id: {uuid: [id]}
  - table: public.order_lines
    unnest: {column: lines, as: line, fields: [sku, qty]}
    columns: {order_id: id, line_no: line_number, sku: line_sku, qty: line_qty}
```

| key | value | default | meaning |
|---|---|---|---|
| `table` | a table | required | must be there, and once in the list; parents stand before their children |
| `columns` | a mapping | required | column of the table to what it gets: a Polars SQL expression over the record \
(a plain column is copied), `{uuid: [columns]}`, or `{parent: table, column: name}` |
| `unnest` | `{column: …, as: …, fields: […]}` |  | a row for each element of a JSON array or a list; see below |
| `where` | a Polars SQL condition |  | rows for which it is true; it sees the element's columns too |
| `mode` | `append`, `skip` or `upsert` |  | as `target.mode`; without one the table must be empty |
| `conflict` | a column or a list | the primary key | as `target.conflict` |
| `newer_by` | a column |  | as `target.newer_by` |

`{uuid: [columns]}` is a UUID of version 5 whose name is the text of these columns, as the quarantine shows a key, in
the namespace 28b45d9e-7ba8-524c-9b54-986af1ce25c1 (that of the URL `keyhaul`): the same in every table and every run.
`{parent: table, column: name}` is what the record's row has there in an earlier table without `unnest`. Of a table
that is appended to, it is the value that was written, or for an identity or serial column one taken from its sequence
before the write; with `skip` and `upsert` it is read back by the conflict columns, and NULL when one of them is NULL.

`unnest` with `as: line` gives `line_number`, which counts the elements of a record from 1, and for each of the
`fields` of JSON objects `line_FIELD` as text: a string's text, a number as it is written, a nested value as JSON, NULL
for null and for what is missing. Without `fields` the element itself is `line`. `as` is the column's name by default. A
text becomes the target's type as the target reads it; one that it does not take quarantines the record (`type:COLUMN`).
So does a value that is no JSON array, or an element that is no object (stage `transform`, rule `unnest:COLUMN`). NULL,
JSON null and an empty array give no row.

The balance counts records: loaded when at least one row was stored in any table, unchanged when it had rows and none
had to be stored, filtered when it has no row in any table. The report and `etl show` give the rows of each table:
inserted, updated, unchanged, and duplicate (another row of the chunk has the same conflict columns and was written).
`target` keeps `uri`; `table`, `mode`, `conflict` and `newer_by` belong to the entries. These tables are loaded with
`copy`, whatever `loader` says.

## The file

`${NAME}` in a value is the environment variable, which must be set; `${NAME:-text}` has a default for a variable
that is unset or empty; `$${` is a plain `${`. An unquoted `${NAME}` that holds a number is a number. Only `true` and
`false` are truth values; `on`, `yes` and dates are text. Refused, with the line: unknown and repeated keys, anchors,
aliases, merge keys, tags, a second document, a file above 128,000 bytes or with more than 10,000 keys and values.

`etl schema` prints the JSON schema for editors.

## What makes a job the same

An unfinished run is looked for in the ledger by the job's name, which is that of the source table unless one is given:
give `--job` where one table goes to two targets in one database. It is resumed only by the same job: source database
(host, port, name), table or query, key, chunk (a number, or auto with whatever settings), transform (with the file of a
Python step or a lookup), dedup, rules, incremental, whether there are checksums, target table, mode, `conflict` and
`newer_by`, or targets. Everything else may change in between.
"""


def configuration() -> str:
    """Return the text of docs/configuration.md."""
    rows = "".join(_row(setting) for setting in settings())
    kinds = "".join(
        f"| `{name}` | {kind.described()} | {'required' if kind.needs_key else 'may be left out'} |\n"
        for name, kind in KINDS.items()
    )
    options = ", ".join(f"`{name}`" for name in sorted(OPTIONS))
    return _HEAD + rows + _TAIL.replace("OPTIONS", options).replace("KINDS", kinds)


def _row(setting: Setting) -> str:
    default = "required" if setting.required else _code(setting.default)
    flags = ", ".join(_code(flag) for flag in setting.flag.split(", "))
    key = _code(".".join(setting.place))
    return f"| {key} | {setting.expected} | {default} | {flags} | {_code(setting.variable)} | {setting.meaning} |\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    sys.stdout.write(configuration())
