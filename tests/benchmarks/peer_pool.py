"""The job as in the scripts that users have: a pool of threads, one row at a time, a transaction for each.

Runs in a venv of its own: ``peer_pool.py SOURCE TARGET SOURCE_TABLE TARGET_TABLE UP_TO_ID``.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import local

import psycopg

source, target, orders, loaded, up_to = sys.argv[1:]
mine = local()


def move(key):
    if not hasattr(mine, "source"):
        mine.source = psycopg.connect(source, autocommit=True)
        mine.target = psycopg.connect(target)
    found = mine.source.execute(
        f"select * from {orders} where id = %s and amount >= 0 order by updated_at desc limit 1", [key]
    ).fetchone()
    if found is not None:
        number, customer, status, amount, *rest = found
        mine.target.execute(
            f"insert into {loaded} values ({', '.join(['%s'] * 9)}) on conflict (id) do nothing",
            [number, customer, status.upper(), amount, *rest, round(amount * 8 / 10, 3)],
        )
        mine.target.commit()


with psycopg.connect(source) as conn:
    keys = [row[0] for row in conn.execute(f"select distinct id from {orders} where id <= %s", [int(up_to)])]
with ThreadPoolExecutor(8) as pool:
    done = sum(1 for _ in pool.map(move, keys))
print(json.dumps({"rows": done}))
