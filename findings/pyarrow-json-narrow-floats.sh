#!/usr/bin/env bash
# pyarrow 25.0.1, pyarrow.json.read_json with an explicit schema: a number that a float32 column cannot hold becomes inf
# without an error (1e39), although the same overflow of a float64 column is refused (1e400: "Number too big to be stored in
# double"). A number that is too small becomes 0 in both. A JSON string in a decimal128 column is taken as a number, in a
# float64 column it is refused. A line feed is only a blank: two objects on a line are two rows, and one object over two
# lines is a row, so a file with one broken line and one doubled line has as many rows as lines.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==25.0.1 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
"$work/venv/bin/python" - <<'PY'
import sys

import pyarrow as pa
import pyarrow.json as pj


def read(kind, text):
    options = pj.ParseOptions(explicit_schema=pa.schema([("v", kind)]), unexpected_field_behavior="error")
    try:
        return pj.read_json(pa.BufferReader(text), parse_options=options)["v"].to_pylist()
    except pa.ArrowInvalid as error:
        return str(error).splitlines()[0]


print("pyarrow", pa.__version__)
got = {
    "float32 1e39": read(pa.float32(), b'{"v":1e39}\n'),
    "float32 1e-60": read(pa.float32(), b'{"v":1e-60}\n'),
    "float64 1e400": read(pa.float64(), b'{"v":1e400}\n'),
    "float64 1e-400": read(pa.float64(), b'{"v":1e-400}\n'),
    'decimal "1e2"': [str(value) for value in read(pa.decimal128(10, 1), b'{"v":"1e2"}\n')],
    'float64 "1e2"': read(pa.float64(), b'{"v":"1e2"}\n'),
    "two on a line": read(pa.int64(), b'{"v":1}{"v":2}\n'),
    "one on two lines": read(pa.int64(), b'{"v":\n1}\n'),
}
for what, value in got.items():
    print(f"{what:17} {value}")
as_found = (
    got["float32 1e39"] == [float("inf")]
    and got["float32 1e-60"] == got["float64 1e-400"] == [0.0]
    and "too big" in got["float64 1e400"]
    and got['decimal "1e2"'] == ["100.0"]
    and "changed from number to string" in got['float64 "1e2"']
    and got["two on a line"] == [1, 2]
    and got["one on two lines"] == [1]
)
print("as found" if as_found else "the behaviour has changed")
sys.exit(not as_found)
PY
