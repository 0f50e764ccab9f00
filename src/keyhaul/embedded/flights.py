"""The bundled flights: 336,776 rows of 2013, from flights.parquet into ``public.flights``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql

from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    import psycopg

FLIGHTS = """
create table public.flights (
    id bigint not null,
    year integer not null,
    month integer not null,
    day integer not null,
    dep_time integer,
    sched_dep_time integer not null,
    dep_delay integer,
    arr_time integer,
    sched_arr_time integer not null,
    arr_delay integer,
    carrier text not null,
    flight integer not null,
    tailnum text,
    origin text not null,
    dest text not null,
    air_time integer,
    distance integer not null,
    hour integer not null,
    minute integer not null,
    time_hour timestamptz not null
)
"""


def flights_path() -> Path:
    """Return the bundled flights.parquet: of the installed package, or of the source checkout.

    Raises:
        ConfigError: neither is there.
    """
    here = Path(__file__).resolve().parents[1]
    places = [here / "_data" / "flights.parquet", here.parents[1] / "data" / "flights.parquet"]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(f"find flights.parquet: not in {places[0].parent}, expected it there. Install keyhaul again.")


def are_there(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Return whether the table is in this database."""
    # Not to_regclass: it can answer from a cache that is older than the lock that was waited for.
    found = connection.execute("select 1 from pg_tables where schemaname = 'public' and tablename = 'flights'")
    return found.fetchone() is not None


def load(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Create ``public.flights`` and load it whole, in the transaction of `connection`; about 60 MB of memory."""
    # Here and not above: a start that finds the table does not need them, and they take 0.2 s.
    from pgpq import ArrowToPostgresBinaryEncoder
    from pyarrow import parquet

    connection.execute(FLIGHTS)
    with parquet.ParquetFile(flights_path()) as file:
        encoder = ArrowToPostgresBinaryEncoder(file.schema_arrow)
        columns = sql.SQL(", ").join(map(sql.Identifier, file.schema_arrow.names))
        copy = sql.SQL("copy public.flights ({}) from stdin (format binary)").format(columns)
        with connection.cursor() as cursor, cursor.copy(copy) as sink:
            sink.write(encoder.write_header())
            for batch in file.iter_batches(batch_size=50_000):
                sink.write(encoder.write_batch(batch))
            sink.write(encoder.finish())
    connection.execute("alter table public.flights add primary key (id)")
