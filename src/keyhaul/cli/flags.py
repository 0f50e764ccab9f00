"""The options that come from a job's settings, in the order of the model.

Written by `python tools/flagtable.py > src/keyhaul/cli/flags.py`; a test fails when it differs.
"""

from __future__ import annotations

from typing import Final

# fmt: off
FLAGS: Final[tuple[tuple[str, str, str, bool, str], ...]] = (
    # name, what its value is called (a switch has none), help, whether there may be several, commands
    ("--job", "NAME", "Name in the ledger [the table's].", False, "move replay verify"),
    ("--source", "URI|PATH", "Source: a database or a file [embedded].", False, "move replay verify"),
    ("--table", "T", "Table or view to read.", False, "move replay verify"),
    ("--query", "SQL", "SELECT to read instead of a table.", False, "move replay verify"),
    ("--reader", "NAME", "connectorx or adbc.", False, "move replay verify"),
    ("--only", "", "Leave out the rows of tables that inherit from it.", False, "move replay verify"),
    ("--column", "'COL TYPE'", "Type of a file's column.", True, "move replay verify"),
    ("--only-new", "", "Load the files that no run has loaded.", False, "move replay verify"),
    ("--key", "K[,K2…]", "Columns that the chunks are cut by.", False, "move replay verify"),
    ("--chunk", "N|auto", "Rows of a chunk [50000].", False, "move replay"),
    ("--set", "'COL = EXPR'", "Compute a column.", True, "move replay verify"),
    ("--where", "EXPR", "Keep rows for which this is true.", True, "move replay verify"),
    ("--incremental", "C", "Read only what is new by this column.", False, "move replay"),
    ("--lag", "5m", "Begin so far below what was read last [0].", False, "move replay"),
    ("--dedup", "C1[,C2…]", "Keep one row for each value.", False, "move replay verify"),
    ("--order-by", "C", "Of copies the highest stays (keep: last).", False, "move replay verify"),
    ("--rule", "'NAME: EXPR'", "Quarantine rows that fail.", True, "move verify"),
    ("--check", "'NAME: EXPR'", "A rule of the job.", True, "replay"),
    ("--target", "URI", "Target database [embedded].", False, "move replay verify"),
    ("--into", "T", "Table to load [the source's name].", False, "move replay verify"),
    ("--mode", "append|skip|upsert|replace", "Rows that are there.", False, "move replay verify"),
    ("--conflict", "C1[,C2…]", "What says so [primary key].", False, "move replay verify"),
    ("--newer-by", "C", "Upsert only what is newer by it.", False, "move replay verify"),
    ("--no-create", "", "Refuse a missing target table.", False, "move replay"),
    ("--with-foreign-keys", "", "Create the source's foreign keys as well.", False, "move replay"),
    ("--loader", "NAME", "copy or adbc.", False, "move replay"),
    ("--workers", "N", "Chunks at a time [chosen].", False, "move replay verify"),
    ("--memory-limit", "SIZE|P%", "For chunks under way [80%].", False, "move replay"),
    ("--cpu-limit", "P%", "Fewer workers while the CPU is above.", False, "move replay"),
    ("--rate-limit", "N", "Rows a second from the source.", False, "move replay"),
    ("--order", "asc|desc", "Lowest or highest keys first.", False, "move"),
    ("--stop-on-error", "", "Stop at the first failed chunk.", False, "move replay"),
    ("--allow-quarantined", "N|P%", "Still exit code 0 [0].", False, "move replay"),
    ("--checksum", "", "For etl verify --against-ledger; costs CPU.", False, "move"),
    ("--home", "DIR", "Folder of the embedded PostgreSQL.", False, "move replay verify"),
    ("--work-dir", "DIR", "For rows that wait while copies are told [cache].", False, "move replay"),
)
