from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import keyhaul

SOURCE = Path(keyhaul.__file__).parent

# From the bottom up. A module imports from lower rows only, so two of one row know nothing of each other.
# An import for annotations counts like any other: who names a type depends on the module that defines it.
ROWS = [
    {"errors", "redaction"},
    {
        "model",
        "verdict",
        "allowance",
        "lag",
        "quantity",
        "identity",
        "control",
        "text",
        "memory",
        "console",
        "outlet",
        "sql",
        "keeper",
        "faults",
        "timeline",
        "links",
        "patience",
        "seats",
        "team",
        "retrying",
    },
    {
        "ledgerrows",
        "events",
        "bottleneck",
        "hiring",
        "limits",
        "pgtypes",
        "dsn",
        "draft",
        "home",
        "flights",
        "definition",
        "expressions",
        "markup",
        "wholefile",
    },
    {"older", "addresses", "svg", "embedded", "entries", "yamlfile", "decoding"},
    {"lookupstep", "runrules", "tablestep"},
    {"steps", "lookup"},
    {"layers", "fields", "perchunk"},
    {"parts", "checkkinds"},
    {"config", "checkfile"},
    {"jobschema"},
    {"catalog", "cuts", "pace", "casts", "shapes", "quality_sql"},
    {"transform", "computed", "quality_patterns"},
    {"mapping", "copies"},
    {"rules"},
    {"stage", "unnest"},
    {"gather", "nameduuid"},
    {"sources.stability"},
    {"sources.readers", "sources.sql", "targets.session", "targets.ddl", "targets.keyrange"},
    {"sources.lookups"},
    {"targets.rows", "targets.rowhash", "targets.replayed", "targets.carry", "targets.anatomy"},
    {"targets.singly", "targets.constraints"},
    {"targets.isolate", "targets.sheets"},
    {"targets.records"},
    {"targets.postgres", "targets.compare"},
    {"targets.transaction"},
    {"targets.modes", "targets.replace", "differences"},
    {"tables"},
    {"spread"},
    {"joblock"},
    {"ledger"},
    {"task"},
    {"worker", "connecting", "incremental", "runcheck", "heartbeat", "halting"},
    {"quality_files", "quality_postgres"},
    {"watchdog"},
    {"prepare", "crew", "accepted", "dispatch", "trying"},
    {"pool", "sizing", "swapping", "matching"},
    {"phases", "ending", "checksums"},
    {"outset"},
    {"engine"},
    {"tally", "reporting", "quality_output", "htmltables"},
    {"progress", "logfile", "lookback", "planview", "configdoc", "typedoc"},
    {"verifiable"},
    {"checksummed"},
    {"rejects", "replay", "comparing", "ledgercompare", "offenders", "quality_records", "history"},
    {"checkhistory", "jobs", "htmlreport", "follow"},
    {"historydoc"},
    {"quality_rules", "quality_across", "quality_drift"},
    {"quality"},
    {"shell", "retyped"},
    {"looking", "checking", "verifying", "reportcli"},
    {"cli"},
    {"__main__"},
]

MODULE_LINES = 420
FUNCTION_LINES = 50

COMMAND_LINE = {"cli", "retyped", "shell", "looking", "checking", "verifying", "reportcli"}

OUTSIDE = {"print", "input", "exit", "quit", "SystemExit", "typer.echo"} | {
    f"{module}.{name}"
    for module, names in {
        "sys": ("stdin", "stdout", "stderr", "argv", "exit"),
        "os": ("environ", "environb", "getenv", "putenv", "_exit"),
    }.items()
    for name in names
}

MAY_TOUCH_THE_OUTSIDE = {
    ("keeper", "sys.argv"): "a program of its own, started with -I -S: its order is its argument",
    ("keeper", "sys.stderr"): "its stderr is the server's log",
    ("keeper", "sys.exit"): "it ends a process that is its own",
    ("keeper", "os._exit"): "after a fork, the parent's cleanup is not the child's",
    ("configdoc", "sys.stdout"): "the text of a page, for `python -m keyhaul.configdoc > page`",
    ("historydoc", "sys.stdout"): "the same, for `python -m keyhaul.historydoc > page`",
    ("typedoc", "sys.stdout"): "the same, for `python -m keyhaul.typedoc > page`",
    ("sources.readers", "SystemExit"): "told from a panic of the driver and raised on, not made",
    ("progress", "sys.stderr"): "compared with, not written to: rich must redirect only the stream that it draws on",
}

MAY_SWALLOW = {
    ("cli", "_command"): "printed with its traceback, and the exit code says that it is our fault",
    ("keeper", "main"): "written to the log, the only place left to say it",
    ("pool", "Pool._work"): "kept for the main thread, which raises it",
    ("phases", "Phases._settle"): "holds the next one",
    ("phases", "Phases._settle.work"): "kept for the main thread, which raises it",
    ("team", "Team._run"): "the same",
    ("sources.readers", "AdbcReader.close"): "a connection that is broken already is only dropped",
    ("targets.session", "AdbcSession.close"): "a connection that is broken already is only dropped",
    ("targets.session", "AdbcSession.cancel"): "a statement that has ended meanwhile cannot be cancelled",
}

DRIVERS = {
    "adbc_driver_manager",
    "adbc_driver_postgresql",
    "connectorx",
    "duckdb",
    "pgpq",
    "polars",
    "psycopg",
    "pyarrow",
}


def module_name(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py")) if path.name != "__init__.py"}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported(tree):
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


def functions(tree, above=""):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{above}.{node.name}".lstrip(".")
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions(node, name)
        else:
            yield from functions(node, above)


def swallows(node):
    if isinstance(node, ast.ExceptHandler):
        caught = ast.unparse(node.type) if node.type else "BaseException"
        wide = {"Exception", "BaseException"} & set(caught.strip("()").split(", "))
        return bool(wide) and not isinstance(node.body[-1], ast.Raise)
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    names = {ast.unparse(name) for name in node.args} if called.endswith("suppress") else set()
    return bool({"Exception", "BaseException"} & names)


def test_every_module_has_one_place_among_the_rows():
    placed = [name for row in ROWS for name in row]
    assert sorted(placed) == sorted(MODULES)


def test_no_module_stands_where_a_public_function_should():
    assert set(keyhaul.__all__) & {name.partition(".")[0] for name in MODULES} == set()
    assert set(keyhaul._HOMES) == set(keyhaul.__all__)
    assert all(callable(getattr(keyhaul, name)) for name in keyhaul.__all__)


def test_no_import_points_up_or_sideways():
    height = {name: number for number, row in enumerate(ROWS) for name in row}
    assert [
        f"{name} imports {other}"
        for name, tree in TREES.items()
        for other in sorted(set(imported(tree)))
        if other and height.get(other, 0) >= height.get(name, len(ROWS))
    ] == []


def test_only_the_command_line_prints_reads_the_environment_or_exits():
    found = {
        (name, ast.unparse(node))
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if name not in COMMAND_LINE and isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in OUTSIDE
    }
    assert found == set(MAY_TOUCH_THE_OUTSIDE)


def test_data_is_never_checked_by_an_assert():
    found = [
        f"{name}, line {node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_an_error_of_any_kind_is_raised_again_outside_the_places_that_have_a_reason():
    found = {
        (name, function)
        for name, tree in TREES.items()
        for function, body in functions(tree)
        for node in ast.walk(body)
        if swallows(node)
    }
    assert found == set(MAY_SWALLOW)


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_stay_short(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= MODULE_LINES
    for function, node in functions(TREES[name]):
        body = node.body[1:] if ast.get_docstring(node) else node.body  # a command has a parameter for each flag
        assert not body or node.end_lineno - body[0].lineno + 1 <= FUNCTION_LINES, function


@pytest.mark.parametrize(
    "program",
    [
        "import keyhaul, keyhaul.model, keyhaul.events",
        "import keyhaul; keyhaul.__version__, dir(keyhaul), hasattr(keyhaul, 'nonsense')",
        "from keyhaul.cli import app; app(['--help'], standalone_mode=False)",
        "from keyhaul.cli import app; app(['chunked', '--help'], standalone_mode=False)",
        "from keyhaul.cli import app; app(['--version'], standalone_mode=False)",
        "from keyhaul.cli import app; app(['schema'], standalone_mode=False)",
    ],
)
def test_no_driver_is_imported_before_there_is_something_to_move(program):
    asked = f"{program}\nimport sys\nprint('loaded', *sorted({DRIVERS} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "loaded"
