"""The job by DuckDB and its PostgreSQL extension: one INSERT … SELECT, and the quarantine beside it.

Runs in a venv of its own: ``peer_duckdb.py SOURCE TARGET SOURCE_TABLE TARGET_TABLE QUARANTINE_TABLE``.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import duckdb

source, target, orders, loaded, quarantine = sys.argv[1:]
found = find_spec("duckdb_extension_postgres_scanner")
(extension,) = Path(found.submodule_search_locations[0]).rglob("*.duckdb_extension")
con = duckdb.connect(config={"allow_unsigned_extensions": "true"})
con.execute(f"load '{extension}'")
con.execute("set timezone = 'UTC'")
con.execute(f"attach '{source}' as s (type postgres, read_only)")
con.execute(f"attach '{target}' as t (type postgres)")
con.execute("begin")
con.execute(f"""
    insert into t.{loaded}
    select id, customer_id, upper(status), amount, currency, created_at, updated_at, note,
           (amount * 0.8)::decimal(14, 3)
    from s.{orders} where amount >= 0
    qualify row_number() over (partition by id order by updated_at desc) = 1
""")
con.execute(f"insert into t.{quarantine} select to_json(o)::varchar from s.{orders} o where amount < 0")
con.execute("commit")
