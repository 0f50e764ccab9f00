"""Whether a money is the same amount at both ends: what its smallest unit is, each database says for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyhaul.errors import RefusedError
from keyhaul.postgres.shapes import money_problem
from keyhaul.sessions.connecting import decimals

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any

    import psycopg

    from keyhaul.postgres.dsn import Dsn
    from keyhaul.sources.source import Source
    from keyhaul.targets.postgres import TargetTable
    from keyhaul.transform.compiled import OutputColumn
    from keyhaul.transform.mapping import WriteColumn


def check_money(
    source: Source,
    target_conn: psycopg.Connection[Any],
    target_dsn: Dsn,
    target: TargetTable,
    output: Mapping[str, OutputColumn],
    columns: Sequence[WriteColumn],
    used: Collection[str],
) -> None:
    """Refuse columns in which an amount of money would become another one; `used` are those that a step reads.

    Raises:
        RefusedError: names them, and says what to write instead.
    """
    known, sources = source.abilities.catalog, {column.name: column for column in source.describe().columns}
    origins = {column.name: output[column.name].source if column.name in output else None for column in columns}
    copied = [sources[origin] for origin in origins.values() if origin]
    ours = known.decimals(copied) if known is not None and copied else {}
    # The types of a table that is not there yet are the source's: the target may not even know them.
    written = [column.target for column in columns]
    if target.ddl.before:
        written = [column.target for column in columns if origins[column.name] in ours]
    theirs = decimals(target_conn, written, target_dsn, "target", sure=bool(target.ddl.before))
    problems = [
        f"write {target.label}.{name}: {problem}"
        for name, origin in origins.items()
        if (problem := money_problem(origin, ours.get(origin or ""), theirs.get(name)))
    ]
    looked_at = known.decimals([sources[name] for name in used if name in sources]) if known is not None else {}
    problems += [
        f"read {name}: {problem}"
        for name, number in looked_at.items()
        if (problem := money_problem(name, number, None))
    ]
    if problems:
        raise RefusedError("\n".join(problems))
