"""The rooms of src/keyhaul: which there are, in which order they may import, and what may be reached from outside.

``python tests/rooms.py`` prints the imports between rooms, the largest rooms, and every import that breaks a rule.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parents[1] / "src" / "keyhaul"

NOUNS = (
    "errors", "redaction", "model", "events", "faults", "control", "text", "memory", "quantity", "wholefile",
    "workfolder", "team", "console", "quoting", "retrying", "halving", "differing",
    "machine", "storeaddress",
)  # fmt: skip
"""Modules of keyhaul/ itself that everybody may use; among themselves they have no circle."""

ROOMS = {
    "postgres": ("pgtypes", "catalog", "definition", "dsn", "shapes"),
    "embedded": ("server", "flights", "home"),
    "ledger": ("store", "rows", "reading", "statements", "versions"),
    "config": ("job", "parts", "steps", "checkfile", "draft"),
    "sessions": ("connecting", "watchdog", "links", "seats", "capacity"),
    "semantics": ("meanings", "comparing", "arithmetic"),
    "transform": ("compiled", "mapping", "decoding", "casts", "lookup"),
    "sources": ("source", "kinds", "lookups", "cuts", "postgres"),
    "staging": ("stage", "rules", "gather", "copies"),
    "targets": ("session", "transaction", "postgres", "replace", "rowhash"),
    "limits": ("limiter", "pace", "hiring", "dispatch", "crew"),
    "fanout": ("tables", "spread", "unnest"),
    "before": ("prepare", "context", "preview", "outset", "checksums"),
    "execution": ("engine", "pool", "steps", "halting", "heartbeat"),
    "quality": ("checking", "verdict", "records", "offenders", "sql"),
    "replay": ("resending",),
    "comparison": ("comparing", "ledgercompare", "differences", "verifiable"),
    "history": ("frames", "checks"),
    "live": ("progress", "logfile", "follow", "tally"),
    "printing": ("reporting", "lookback", "rejects", "planview", "verdicts"),
    "pages": ("report",),
    "api": (),
    "cli": ("app", "start"),
    "__main__": (),
}
"""From the ground up: a room imports from rooms above it in this list, and from the nouns. With each its doors: the
modules that may be imported from outside the room, five at most."""

WINDOWS = {
    "before.prepare imports targets.modes",
    "before.runcheck imports config.runrules",
    "cli.app imports config.jobschema",
    "cli.app imports replay.older",
    "cli.looking imports config.allowance",
    "cli.verifying imports comparison.checksummed",
    "comparison.accepted imports targets.writable",
    "comparison.comparing imports before.matching",
    "comparison.comparing imports targets.compare",
    "comparison.comparing imports targets.keyrange",
    "comparison.differences imports targets.compare",
    "execution.ending imports before.runcheck",
    "execution.ending imports targets.ddl",
    "execution.ending imports targets.sequences",
    "execution.engine imports before.incremental",
    "execution.engine imports before.sizing",
    "execution.engine imports config.identity",
    "execution.chunk imports targets.replayed",
    "execution.chunk imports targets.sheets",
    "execution.steps imports targets.sheets",
    "fanout.spread imports targets.records",
    "fanout.spread imports targets.sheets",
    "fanout.tables imports config.tablestep",
    "fanout.tables imports targets.modes",
    "fanout.tables imports targets.sheets",
    "fanout.unnest imports config.tablestep",
    "quality.across imports before.runcheck",
    "quality.across imports config.runrules",
    "quality.checking imports config.checkkinds",
    "quality.files imports config.checkkinds",
    "quality.postgres imports config.checkkinds",
    "quality.sql imports config.checkkinds",
    "replay.older imports config.allowance",
    "replay.resending imports execution.ending",
    "replay.resending imports targets.replayed",
    "sources.lookups imports config.lookupstep",
    "sources.postgres.lookups imports config.lookupstep",
    "sources.source imports config.lookupstep",
    "staging.rules imports transform.expressions",
    "transform.compiled imports config.lookupstep",
    "transform.lookup imports config.lookupstep",
    "transform.perchunk imports config.lookupstep",
}
"""Imports that still go past the doors: each is to be removed, none may be added."""

MOST_MODULES, MOST_LINES, MOST_DOORS = 20, 3000, 5


class Import(NamedTuple):
    """One import between two modules, named as below src/keyhaul."""

    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py")) if path.name != "__init__.py"}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    """The room of a module; a noun's is ``nouns``."""
    return "nouns" if module in NOUNS else module.partition(".")[0]


def names_of(tree: ast.AST) -> Iterator[str]:
    """What a module imports of keyhaul, as modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.removeprefix("keyhaul.") for name in node.names if name.name.startswith("keyhaul."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            package, _, inner = (node.module or "").partition(".")
            if package == "keyhaul":
                for name in node.names:
                    whole = f"{inner}.{name.name}".lstrip(".")
                    yield whole if whole in MODULES else inner


def all_imports() -> list[Import]:
    """Every import of one module by another; the package's own ``import keyhaul`` is none."""
    return [
        Import(name, other) for name, tree in TREES.items() for other in sorted(set(names_of(tree))) if other in MODULES
    ]


def running_up(imports: list[Import]) -> list[Import]:
    """Those that go from a room to one below it in `ROOMS`, or from a noun to a room."""
    height = {"nouns": -1} | {room: number for number, room in enumerate(ROOMS)}
    return [one for one in imports if height[room_of(one.imported)] > height[room_of(one.importer)]]


def through_the_wall(imports: list[Import]) -> list[Import]:
    """Those that reach into another room by something else than one of its doors."""
    return [
        one
        for one in imports
        if room_of(one.imported) not in {room_of(one.importer), "nouns"}
        and "." in one.imported
        and one.imported.split(".")[1] not in ROOMS[room_of(one.imported)]
    ]


def circles(imports: list[Import]) -> list[str]:
    """Modules that import each other, directly or by way of others, as ``a -> b -> a``."""
    graph: dict[str, list[str]] = defaultdict(list)
    for one in imports:
        graph[one.importer].append(one.imported)
    found, done = [], set[str]()

    def walk(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for other in graph[module]:
                walk(other, (*path, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())
    return found


def sizes() -> dict[str, tuple[int, int]]:
    """Of each room the number of its modules and of their lines; a kind of source is a room inside of a room."""
    total: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for name, path in MODULES.items():
        room = name.rpartition(".")[0] if name.startswith("sources.") and name.count(".") > 1 else room_of(name)
        modules, lines = total[room]
        total[room] = modules + 1, lines + len(path.read_text(encoding="utf-8").splitlines())
    return dict(total)


def main() -> int:
    """Print the imports between rooms and what breaks a rule; returns how many rules are broken."""
    imports = all_imports()
    table: dict[str, set[str]] = defaultdict(set)
    for one in imports:
        if room_of(one.importer) != room_of(one.imported):
            table[room_of(one.importer)].add(room_of(one.imported))
    measured = sizes()
    kinds = sorted(room for room in measured if "." in room)
    for room in ("nouns", *ROOMS, *kinds):
        modules, lines = measured.get(room, (0, 0))
        print(f"{room:12} {modules:3} modules {lines:6,} lines  <- {', '.join(sorted(table[room] - {'nouns'})) or '-'}")
    broken = [
        *(f"up: {one}" for one in running_up(imports)),
        *(f"not by a door: {one}" for one in through_the_wall(imports) if str(one) not in WINDOWS),
        *(f"circle: {one}" for one in circles(imports)),
    ]
    print(
        f"{len(imports):,} imports, {len(WINDOWS)} past the doors, {len(broken)} against the rules", *broken, sep="\n"
    )
    return len(broken)


if __name__ == "__main__":
    sys.exit(bool(main()))
