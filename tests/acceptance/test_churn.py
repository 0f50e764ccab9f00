"""While a writer changes the source without pause, a run's target is one moment of it.

The writer numbers its transactions, writes the number into the rows that it changes and into a log,
all in that transaction. So the highest number in the target names the one moment that the target must
equal, row for row, and the log says what the source was then.
"""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest
import support
from aftermath import check_ledger, checksum, fetch, value

ACCOUNTS = 20_000
AMOUNT = 100

TABLES = f"""
create table public.accounts (id bigint primary key, amount bigint not null, changed_by bigint not null);
insert into public.accounts select g * 5, {AMOUNT}, 0 from generate_series(1, {ACCOUNTS}) g;
create table public.log (number bigint not null, id bigint not null, amount bigint);
analyze;
"""

WRITER = """
import itertools, random, sys
import psycopg

chance = random.Random(1)
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    ids = [id for (id,) in connection.execute("select id from public.accounts order by id")]
    log = "insert into public.log values (%s, %s, %s)"
    update = "update public.accounts set amount = amount + %s, changed_by = %s where id = %s returning amount"
    for number in itertools.count(1):
        with connection.transaction():
            for id, change in zip(chance.sample(ids, 2), (-3, 3)):
                (amount,) = connection.execute(update, (change, number, id)).fetchone()
                connection.execute(log, (number, id, amount))
            place, new = chance.randrange(len(ids)), chance.randrange(5 * len(ids))
            old = ids[place]
            taken = connection.execute("select 1 from public.accounts where id = %s", (new,)).fetchone()
            if new % 5 and not taken:
                (amount,) = connection.execute(
                    "delete from public.accounts where id = %s returning amount", (old,)
                ).fetchone()
                connection.execute(log, (number, old, None))
                connection.execute("insert into public.accounts values (%s, %s, %s)", (new, amount, number))
                connection.execute(log, (number, new, amount))
                ids[place] = new
"""

THEN = """
(select id, amount, changed_by from (
    select distinct on (id) id, amount, number as changed_by from (
        select id, amount, number from public.log where number <= {number}
        union all select g * 5, {amount}, 0 from generate_series(1, {accounts}) g
    ) every order by id, number desc
) latest where amount is not null)
"""


@pytest.fixture
def churning(databases):
    """A source that a process writes to without pause, and an empty target."""
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(TABLES)
    with subprocess.Popen([sys.executable, "-c", WRITER, source], stderr=subprocess.PIPE, text=True) as writer:
        try:
            support.wait_until(lambda: value(source, "select count(*) from public.log") > 100, "the writer to begin")
            yield source, target
            assert writer.poll() is None, writer.stderr.read()
        finally:
            writer.kill()


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_the_target_is_one_moment_of_a_source_that_never_rests(etl, churning, reader):
    source, target = churning
    where = ("--source", source, "--target", target, "--table", "public.accounts", "--key", "id")
    before = value(source, "select max(number) from public.log")
    done = etl("chunked", *where, "--chunk", "500", "--workers", "2", "--reader", reader)
    after = value(source, "select max(number) from public.log")
    assert done.returncode == 0, done.stderr
    assert fetch(target, "select count(*), sum(amount)::bigint from public.accounts") == [(ACCOUNTS, AMOUNT * ACCOUNTS)]
    number = value(target, "select max(changed_by) from public.accounts")
    # The writer went on while the chunks were read: there were other moments that a reader could have mixed in.
    assert before <= number < after - 100
    then = THEN.format(number=number, amount=AMOUNT, accounts=ACCOUNTS)
    assert checksum(target, "public.accounts") == checksum(source, then)
    assert check_ledger(target, "public.accounts")["read"] == ACCOUNTS
