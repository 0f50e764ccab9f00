"""What `etl check` prints, on a wide screen, a narrow one, and where there is none."""

from __future__ import annotations

import io
import os
import pty
import re

from keyhaul.printing.verdicts import print_verdicts
from keyhaul.quality.verdict import Verdict, Verdicts

VERDICTS = Verdicts(
    check_run="20260101T000000-0000",
    file="checks.yaml",
    source="shop public.orders",
    rows=1000,
    seconds=0.5,
    verdicts=(
        Verdict(name="id", kind="unique", severity="error", status="passed", rows=1000, failures=0),
        Verdict(
            name="a long name for a check of customers",
            kind="not_null",
            severity="error",
            status="failed",
            rows=1000,
            failures=2,
            offenders=({"id": "7", "customer": None}, {"id": "8", "customer": "x\ny"}),
        ),
        Verdict(
            name="old",
            kind="between",
            severity="warn",
            status="warned",
            rows=1000,
            failures=12,
            allowed="1%",
            offenders=({"id": "1"}, {"id": "2"}),
        ),
    ),
)


def on_a_terminal():
    """Return the lines on a terminal, without colours."""
    near, far = pty.openpty()
    with os.fdopen(near, "rb", buffering=0) as screen, os.fdopen(far, "w", encoding="utf-8") as stream:
        print_verdicts(VERDICTS, stream)
        shown = screen.read(100_000).decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n").splitlines()


def test_the_outcome_of_every_check_is_seen_on_a_narrow_screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    lines = on_a_terminal()
    assert max(map(len, lines)) <= 40
    assert [line.split()[0] for line in lines if line.startswith(("  passed", "  failed", "  warned"))] == [
        "passed",
        "failed",
        "warned",
    ]
    whole = re.sub(r"\s+", " ", " ".join(lines))
    assert "2 of 1,000 rows" in whole
    assert whole.endswith(
        "1 passed, 1 failed, 1 warned in 0.50 s results are not kept: no ledger. Give --ledger URI, or --state FILE"
    )


def test_failing_rows_with_values_have_a_line_each_and_keys_alone_share_one():
    stream = io.StringIO()
    print_verdicts(VERDICTS, stream)
    assert stream.getvalue().partition("Some of the failing rows\n")[2].partition("\n\n")[0].splitlines() == [
        "  a long name for a check of customers",
        "    id=7 customer=NULL",
        r"    id=8 customer=x\ny",
        "  old: id=1; id=2",
    ]
