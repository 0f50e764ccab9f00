#!/usr/bin/env bash
# polars 2.1.0: a CSV file whose Zstandard stream begins with a skippable frame (RFC 8878, 3.1.2; parallel and seekable
# compressors write them) is not recognised as compressed. read_csv and scan_csv parse the compressed bytes as CSV, without
# an error where they happen to be readable: 1,000 rows become none. DuckDB 2.0.0 and pyarrow 25.0.1 read the same file.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check polars==2.1.0 pyarrow==25.0.1 duckdb==2.0.0 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import duckdb
import polars as pl
import pyarrow as pa

sink = pa.BufferOutputStream()
with pa.CompressedOutputStream(sink, "zstd") as out:
    out.write(b"id,v\n" + b"".join(b"%d,value\n" % number for number in range(1000)))
frame = sink.getvalue().to_pybytes()
skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"meta"
with open("plain.csv.zst", "wb") as file:
    file.write(frame)
with open("skippable.csv.zst", "wb") as file:
    file.write(skippable + frame)

print("polars", pl.__version__, "pyarrow", pa.__version__, "duckdb", duckdb.__version__)
got = {}
for name in ("plain.csv.zst", "skippable.csv.zst"):
    text = pa.CompressedInputStream(pa.OSFile(name), "zstd").read()
    got[name] = (
        pl.read_csv(name).height,
        pl.scan_csv(name).collect().height,
        duckdb.execute(f"select count(*) from '{name}'").fetchall()[0][0],
        text.count(b"\n") - 1,
    )
    print(f"{name}: rows by polars read_csv, scan_csv, duckdb, pyarrow: {got[name]}")
as_found = got == {"plain.csv.zst": (1000, 1000, 1000, 1000), "skippable.csv.zst": (0, 0, 1000, 1000)}
sys.exit(0 if as_found else 1)
PY
