"""docs/history.md, written from the frames' columns: ``python tools/historydoc.py > docs/history.md``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import polars as pl

from keyhaul.history.checks import CHECKS
from keyhaul.history.frames import CHUNKS, QUARANTINE, RUNS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polars._typing import PolarsDataType

    from keyhaul.history.frames import Field

_HEAD = """\
# History as data

Written by `python tools/historydoc.py > docs/history.md`; a test fails when it differs.

```python
import keyhaul

keyhaul.runs()  # all runs of the embedded warehouse's ledger, the newest first
keyhaul.runs("postgresql://user:password@host:5432/dbname")
keyhaul.chunks("last")  # the chunks of a run, in key order
keyhaul.quarantine("last")  # a LazyFrame: reads only the columns that a query uses, when it is collected

report = keyhaul.run({"key": "id", "chunk": 50_000}, print)  # the engine, with `print` as its observer
keyhaul.run("configs/flights.yaml", fresh=True)
keyhaul.plan("configs/flights.yaml").chunks  # all that `etl plan` prints, as one value
keyhaul.verify("configs/flights.yaml").equal  # the last run's target beside the source as it is now
keyhaul.verify_ledger("last").equal  # beside the checksums of a run with `checksum: true`; needs no source

keyhaul.check("configs/flights_checks.yaml").good  # the checks of a file, or a job's rules on its target
keyhaul.checks()  # what is kept of all checks, the newest first; of a file: keyhaul.checks(state="state.json")
```

`run`, `plan` and `verify` take the path of a job file, settings by the names of their flags with `_` for `-`, or a
`Job`; `check` takes the path of a checks file or a job file. The observer is called with the events of
`keyhaul.events`, from the threads where they happen. None of these functions reads an environment variable unless it
is given `environ=os.environ`; then `ETL_*` counts as on the command line.
`import keyhaul` loads no driver: the functions are imported when they are first used.

A frame has the same types whatever is in the ledger, also when it has no run. A database without a ledger (for
`checks`: without results of checks) is a `RefusedError`, as is a run that is not there; the errors are in
`keyhaul.errors`. No frame holds a password. `key` and `data` of the quarantine hold values of your rows; such a
LazyFrame refuses to be serialized, since it knows how to log in.

Rows are rows of the source. Where "or NULL" does not stand, a column has no NULL. Seconds of the steps are wall time
of one worker, in `runs` summed over all workers: with two workers that never wait they are twice the run's `seconds`.
"""

_FRAMES: tuple[tuple[str, Mapping[str, Field]], ...] = (
    ("runs(target=None, *, home=None, ledger_schema=None, environ=None)", RUNS),
    ('chunks(run="last", *, target=None, home=None, ledger_schema=None, environ=None)', CHUNKS),
    ('quarantine(run="last", *, target=None, home=None, ledger_schema=None, environ=None)', QUARANTINE),
    ("checks(target=None, *, state=None, home=None, ledger_schema=None, environ=None)", CHECKS),
)


def page() -> str:
    """Return docs/history.md."""
    parts = [_HEAD]
    for signature, fields in _FRAMES:
        name, _, rest = signature.partition("(")
        parts.append(
            f"\n## {name}\n\n`keyhaul.{name}({rest}`\n\n| column | type | unit | meaning |\n|---|---|---|---|\n"
        )
        parts += [
            f"| `{column}` | {_spell(field.dtype)}{' or NULL' if field.nullable else ''} | {field.unit} "
            f"| {field.meaning} |\n"
            for column, field in fields.items()
        ]
    return "".join(parts)


def _spell(dtype: PolarsDataType) -> str:
    """Return a type as Polars writes it, with short names inside."""
    if isinstance(dtype, pl.List):
        return f"List({_spell(dtype.inner)})"
    if isinstance(dtype, pl.Struct):
        inner = ", ".join(f"{field.name}: {field.dtype}" for field in dtype.fields)
        return f"Struct({inner})"
    if isinstance(dtype, pl.Datetime):
        return f"Datetime({dtype.time_unit}, {dtype.time_zone})"
    return str(dtype)


if __name__ == "__main__":
    sys.stdout.write(page())
