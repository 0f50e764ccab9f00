"""Parts of the report's page that only some runs have: rows by table, what an incremental run read, rules across it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyhaul.markup import Markup, element

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.model import TableCounts

    Row = Mapping[str, Any]

ROWS_BY_TABLE = "A record gives rows of all these tables, or of none. The balance counts records; this counts rows."


def rows_by_table(tables: Sequence[TableCounts]) -> Markup:
    """Return a table of what became of the rows of each target table; without columns that are 0 throughout."""
    fates = [
        fate
        for fate in ("inserted", "updated", "unchanged", "duplicate")
        if fate == "inserted" or any(getattr(one, fate) for one in tables)
    ]
    head = element("tr", *(element("th", name, scope="col") for name in ("table", *fates)))
    rows = [
        element(
            "tr",
            element("th", element("span", one.table, class_="mono"), scope="row"),
            *(element("td", f"{getattr(one, fate):,}", class_="number") for fate in fates),
        )
        for one in tables
    ]
    table = element("table", element("thead", head), element("tbody", *rows), class_="fates")
    return element("div", table, class_="scroll")


def what_was_read(run: Row, *, show_values: bool) -> Markup | None:
    """Return which rows an incremental run read and where the next one begins; of any other run nothing.

    The bounds are values of rows: without `show_values` only whether there are any.
    """
    if not run["incremental"]:
        return None
    column = run["incremental"]
    bound = f" ({column} ≥ {run['since']})" if show_values else ""
    read = "all rows" if run["since"] is None else f"rows from the last watermark on, less its lag{bound}"
    at = f", {run['watermark']}," if show_values else ""
    then = (
        f"No row has a {column}, so the next run reads all again."
        if run["watermark"] is None
        else f"The next run begins at the highest that was there{at} less its lag."
    )
    return element(
        "p", f"Incremental by {column}: read {read}. {then if run['state'] == 'done' else ''}", class_="note"
    )


def broken_rules(checks: Sequence[Row]) -> Markup | None:
    """Return a line for the top of the page when rules failed with `on_fail: error`: the run is done all the same."""
    names = [check["name"] for check in checks if not check["passed"] and check["on_fail"] == "error"]
    return element("p", f"✗ rules across the run failed: {', '.join(names)}", class_="alarm") if names else None


def rules_across(checks: Sequence[Row]) -> Markup:
    """Return a table of what the rules across the run said."""
    rows = [
        element(
            "tr",
            element("th", element("span", check["name"], class_="mono"), scope="row"),
            element("td", "✓ passed" if check["passed"] else f"✗ failed ({check['on_fail']})", class_=_verdict(check)),
            element("td", check["message"]),
        )
        for check in checks
    ]
    return element("table", element("tbody", *rows), class_="rules")


def _verdict(check: Row) -> str:
    return "good" if check["passed"] else "alarm" if check["on_fail"] == "error" else "marked"
