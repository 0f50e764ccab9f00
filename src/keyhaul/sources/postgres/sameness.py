"""Is a table still the one that a run was planned over? Its rows may be others; its columns and the table may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

    from keyhaul.model import Column
    from keyhaul.postgres.catalog import Relation

_FILES: Final = """
select c.oid::bigint::text, c.oid::regclass::text, pg_relation_filenode(c.oid)::bigint
  from pg_class c
 where c.relkind = 'r' and c.oid in (select %(oid)s union select relid from pg_partition_tree(%(oid)s))
 order by c.oid
"""
"""A table's rows are in another file after TRUNCATE, and after all else that writes each of them anew."""

_REWRITTEN: Final = "TRUNCATE, VACUUM FULL, CLUSTER, or a column's new type"


def identity(conn: psycopg.Connection[Any], relation: Relation, columns: Sequence[Column]) -> Mapping[str, Any]:
    """Return what `difference` compares, JSON-ready: types by names, the table's oid, its files or its definition.

    A query is known by its text, which the job has. A materialized view is written anew by each REFRESH.
    """
    found: dict[str, Any] = {"columns": {column.name: column.pg_type for column in columns}}
    if relation.oid is not None:
        found["oid"] = relation.oid
    if relation.kind in {"r", "p"}:
        rows = conn.execute(_FILES, {"oid": relation.oid}).fetchall()
        found["files"] = {oid: [name, file] for oid, name, file in rows}
    if relation.kind in {"v", "m"}:
        row = conn.execute("select md5(pg_get_viewdef(%s::oid))", [relation.oid]).fetchone()
        found["definition"] = row[0] if row else None
    return found


def difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what has changed, a few words each; partitions that came are no change."""
    before, after = was["columns"], now["columns"]
    told = [f"column {name} is gone" for name in before if name not in after]
    told += [f"column {name} is new" for name in after if name not in before]
    told += [
        f"column {name} was {before[name]} and is {after[name]}"
        for name in before
        if name in after and before[name] != after[name]
    ]
    if was.get("oid") != now.get("oid"):
        return ["it is another table of that name", *told]
    if was.get("definition") != now.get("definition"):
        told.append("the view has another definition")
    files = now.get("files", {})
    for oid, (name, file) in was.get("files", {}).items():
        what = f"the rows of its partition {name} were" if oid != str(was["oid"]) else "its rows were"
        if oid not in files:
            told.append(f"{name} is no partition of it any more")
        elif files[oid][1] != file:
            told.append(f"{what} all removed or written anew ({_REWRITTEN})")
    return told
