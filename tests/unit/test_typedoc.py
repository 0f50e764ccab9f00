"""docs/types.md says what the contract says, and the contract knows every type that a server has."""

from pathlib import Path

import psycopg
import pytest
from typedoc import types

from keyhaul.postgres import pgtypes
from keyhaul.transform.casts import CASTS, ZONED

PAGE = Path(__file__).parents[2] / "docs" / "types.md"

BUILT_IN = """
select t.typname, t.typtype, t.typcategory = 'A'
  from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid
 where n.nspname = 'pg_catalog' and coalesce(c.relkind, 'c') = 'c'
"""

# Of no table's columns: the server lets none be created.
PSEUDO = "p"


def test_the_page_is_what_the_contract_says():
    assert PAGE.read_text(encoding="utf-8") == types()


def test_the_page_names_every_type_and_pair_once():
    lines = types().splitlines()
    for name in [*pgtypes.DIRECT, *pgtypes.TEXT, *pgtypes.REFUSED]:
        assert sum(line.startswith(f"| `{name}` |") and line.count("|") in {3, 5} for line in lines) == 1, name
    for have, want in [*CASTS, *ZONED]:
        assert sum(line.startswith(f"| `{have}` | ") and f"`{want}`" in line.split("|")[2] for line in lines) == 1


def test_no_type_has_two_routes():
    tables = [set(pgtypes.DIRECT), set(pgtypes.TEXT), set(pgtypes.REFUSED), set(pgtypes.WHOLE_FAMILIES)]
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize("major", [18, 16])
def test_every_built_in_type_has_a_route_or_a_reason_why_not(request, major):
    server = request.getfixturevalue("server" if major == 18 else "server16")
    with psycopg.connect(server.uri("postgres")) as conn:
        found = conn.execute(BUILT_IN).fetchall()
    known = {*pgtypes.DIRECT, *pgtypes.TEXT, *pgtypes.REFUSED}
    in_families = {"r", "m", "e", "c", PSEUDO}
    unknown = [name for name, kind, is_array in found if name not in known and kind not in in_families and not is_array]
    assert unknown == []
    # xml is always in the catalog; without libxml its values are not. Extensions' types are not built in.
    there = {name for name, _, _ in found}
    assert known - there == {"citext", "hstore", "ltree", "lquery", "vector", "halfvec", "sparsevec"}
