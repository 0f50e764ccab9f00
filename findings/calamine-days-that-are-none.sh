#!/usr/bin/env bash
# python-calamine 0.9.1: cells with a date format whose number is no day come as another value, without an error. Excel shows
# number 60 as 1900-02-29, a day that never was; it comes as 1900-02-28, like number 59. Number -1, which Excel shows as
# #####, comes as the time 00:00, like number 0. A moment at midnight comes as a date, its neighbours in the column as
# datetimes. fastexcel 0.21.0, over the same library, gives the same day twice as well.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check python-calamine==0.9.1 fastexcel==0.21.0 \
    pyarrow==25.0.1 xlsxwriter==3.3.1 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
cd "$work"
"$work/venv/bin/python" - <<'PY'
import datetime as dt
import sys
from importlib.metadata import version

import fastexcel
import python_calamine
import xlsxwriter

numbers = [-1, 0, 58, 59, 60, 61, 45351, 45351.5]
book = xlsxwriter.Workbook("days.xlsx")
sheet = book.add_worksheet()
form = book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"})
for row, number in enumerate(numbers):
    sheet.write_number(row, 0, number, form)
book.close()

print("python-calamine", version("python-calamine"), "fastexcel", version("fastexcel"))
cells = [row[0] for row in python_calamine.load_workbook("days.xlsx").get_sheet_by_index(0).iter_rows()]
arrow = fastexcel.read_excel("days.xlsx").load_sheet(0, header_row=None, dtypes="datetime").to_arrow()
moments = arrow.column(0).to_pylist()
for number, cell, moment in zip(numbers, cells, moments):
    print(f"{number:8}  calamine {cell!r:45} fastexcel {moment}")
as_found = (
    cells[0] == cells[1] == dt.time(0, 0)
    and cells[3] == cells[4] == dt.date(1900, 2, 28)
    and moments[3] == moments[4]
    and type(cells[6]) is dt.date
    and type(cells[7]) is dt.datetime
)
print("as found" if as_found else "the behaviour has changed")
sys.exit(not as_found)
PY
