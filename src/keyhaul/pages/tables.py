"""Tables of the report's page: rows by table, rules across the run, limits, chunks worth a look; and what was read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from keyhaul.model import FATES, STEPS
from keyhaul.pages.markup import Markup, element
from keyhaul.text import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.model import TableCounts

    Row = Mapping[str, Any]

ROWS_BY_TABLE = "A record gives rows of all these tables, or of none. The balance counts records; this counts rows."


def rows_by_table(tables: Sequence[TableCounts]) -> Markup:
    """Return a table of what became of the rows of each target table; without columns that are 0 throughout."""
    fates = [fate for fate in FATES if fate == FATES[0] or any(getattr(one, fate) for one in tables)]
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


def limits_told(run: Row) -> Markup:
    """Return a table of the run's limits and what they did."""
    if not run["limits"]:
        return element("p", "Not known: it is written when a sitting ends, by this version or a newer one.")
    rows = [
        element(
            "tr",
            element("th", element("span", limit["limit"], class_="mono"), scope="row"),
            element("td", limit["setting"]),
            element("td", _acted(limit) or "did not act", class_=None if _acted(limit) else "nothing"),
        )
        for limit in run["limits"]
    ]
    return element("table", element("tbody", *rows), class_="rules")


def _acted(limit: Row) -> str:
    waited = f"workers waited {duration(limit['waited_seconds'])} for it" if limit["waited_seconds"] else ""
    return "; ".join(filter(None, (limit["effect"], waited)))


_SHORT: Final = {"transform": "transf."}


def worth_a_look(chunks: Sequence[Row], *, show_values: bool) -> list[Markup]:
    """Return a table of chunks, with their seconds by step and, if asked for, their keys; and why some failed."""
    names = ["chunk", "tries", "rows", *STEPS, "wait"]
    head = element("tr", *(element("th", _SHORT.get(name, name), scope="col") for name in names))
    rows = []
    for chunk in chunks:
        rows.append(element("tr", *_cells(chunk, names)))
        if show_values:
            keys = element("td", _keys(chunk), colspan=len(names) - 1, class_="mono")
            rows.append(element("tr", element("td", ""), keys, class_="keys"))
    table = element("table", element("thead", head), element("tbody", *rows), class_="list")
    errors = [
        element("p", f"chunk {c['chunk']} {c['status']}: {c['error']}", class_="alarm") for c in chunks if c["error"]
    ]
    return [element("div", table, class_="scroll"), *errors]


def _keys(chunk: Row) -> str:
    bounds = (", ".join(chunk[f"{end}_bound"] or ["…"]) for end in ("lower", "upper"))
    return "keys " + " to ".join(bounds) if chunk["kind"] == "range" else chunk["kind"]


def _cells(chunk: Row, names: Sequence[str]) -> list[Markup]:
    texts = {
        "chunk": f"{chunk['chunk']}" + (" ✕" if chunk["status"] == "failed" else ""),
        "tries": f"{chunk['attempts']}",
        "rows": f"{chunk['rows_read']:,}",
        **{step: f"{chunk[f'{step}_seconds']:.2f}" for step in (*STEPS, "wait")},
    }
    marked = {"tries": chunk["attempts"] > 1, "chunk": chunk["status"] == "failed"}
    return [element("td", texts[name], class_="number marked" if marked.get(name) else "number") for name in names]
