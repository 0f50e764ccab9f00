from __future__ import annotations

import ast
import subprocess
import sys

import pytest
import rooms
from rooms import MODULES, TREES

import keyhaul

MODULE_LINES = 420
FUNCTION_LINES = 50

COMMAND_LINE = "cli."

OUTSIDE = {"print", "input", "exit", "quit", "SystemExit", "typer.echo"} | {
    f"{module}.{name}"
    for module, names in {
        "sys": ("stdin", "stdout", "stderr", "argv", "exit"),
        "os": ("environ", "environb", "getenv", "putenv", "_exit"),
    }.items()
    for name in names
}

MAY_TOUCH_THE_OUTSIDE = {
    ("embedded.keeper", "sys.argv"): "a program of its own, started with -I -S: its order is its argument",
    ("embedded.keeper", "sys.stderr"): "its stderr is the server's log",
    ("embedded.keeper", "sys.exit"): "it ends a process that is its own",
    ("embedded.keeper", "os._exit"): "after a fork, the parent's cleanup is not the child's",
    (
        "sources.files.remote.stores",
        "os.environ",
    ): "what Azure calls a connection string; obstore reads all others itself",
    ("sources.postgres.readers", "SystemExit"): "told from a panic of the driver and raised on, not made",
    ("sources.sqlite.reading", "SystemExit"): "the same",
    ("sources.sqlite.copier", "sys.argv"): "a program of its own, started with -I -S: its order is its argument",
    ("sources.sqlite.copier", "sys.stdout"): "its answer is a line of JSON",
    (
        "live.progress",
        "sys.stderr",
    ): "compared with, not written to: rich must redirect only the stream that it draws on",
}

MAY_SWALLOW = {
    ("cli.app", "_command"): "printed with its traceback, and the exit code says that it is our fault",
    ("embedded.keeper", "main"): "written to the log, the only place left to say it",
    ("execution.pool", "Pool._work"): "kept for the main thread, which raises it",
    ("execution.phases", "Phases._settle"): "holds the next one",
    ("execution.phases", "Phases._settle.work"): "kept for the main thread, which raises it",
    ("team", "Team._run"): "the same",
    ("sources.postgres.readers", "AdbcReader.close"): "a connection that is broken already is only dropped",
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


def test_every_module_is_a_noun_or_in_a_room():
    assert {name for name in MODULES if "." not in name} == {*rooms.NOUNS, "api", "__main__"}
    assert {rooms.room_of(name) for name in MODULES} == {"nouns", *rooms.ROOMS}


def test_every_door_is_a_module_or_folder_of_its_room_and_a_room_has_five_at_most():
    for room, doors in rooms.ROOMS.items():
        assert len(doors) <= rooms.MOST_DOORS, room
        assert {f"{room}.{door}" for door in doors} <= {*MODULES, *(name.rpartition(".")[0] for name in MODULES)}, room


def test_no_import_runs_up():
    assert rooms.running_up(rooms.all_imports()) == []


def test_no_import_goes_past_a_door_but_those_that_are_to_be_removed():
    assert {str(one) for one in rooms.through_the_wall(rooms.all_imports())} == rooms.WINDOWS


def test_no_modules_import_each_other_in_a_circle():
    assert rooms.circles(rooms.all_imports()) == []


def test_nothing_above_the_sources_knows_one_kind_of_them():
    inside = {"sources", "__main__"}
    kinds = {f"sources.{path.name}" for path in (rooms.SOURCE / "sources").iterdir() if path.is_dir()}
    known = {
        (one.importer, one.imported)
        for one in rooms.all_imports()
        if rooms.room_of(one.importer) not in inside and any(one.imported.startswith(f"{kind}.") for kind in kinds)
    }
    assert known == {("quality.rules", "sources.postgres.readers")}  # its own reader of any database
    names = {"SqlSource", "source_conn", "source_dsn"}
    found = {
        (name, node.id if isinstance(node, ast.Name) else node.attr)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute) and rooms.room_of(name) != "sources"
    }
    assert {pair for pair in found if pair[1] in names} == set()


def test_no_room_is_too_large():
    too_large = {
        room
        for room, (modules, lines) in rooms.sizes().items()
        if modules > rooms.MOST_MODULES or lines > rooms.MOST_LINES
    }
    assert too_large == {"targets", "config"}  # both are to shrink


def test_no_module_stands_where_a_public_function_should():
    assert set(keyhaul.__all__) & {name.partition(".")[0] for name in MODULES} == set()
    assert set(keyhaul._HOMES) == set(keyhaul.__all__)
    assert all(callable(getattr(keyhaul, name)) for name in keyhaul.__all__)


def test_only_the_command_line_prints_reads_the_environment_or_exits():
    found = {
        (name, ast.unparse(node))
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if not name.startswith(COMMAND_LINE)
        and isinstance(node, ast.Name | ast.Attribute)
        and ast.unparse(node) in OUTSIDE
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
        "from keyhaul.cli.app import app; app(['--help'], standalone_mode=False)",
        "from keyhaul.cli.app import app; app(['chunked', '--help'], standalone_mode=False)",
        "from keyhaul.cli.app import app; app(['--version'], standalone_mode=False)",
        "from keyhaul.cli.app import app; app(['schema'], standalone_mode=False)",
    ],
)
def test_no_driver_is_imported_before_there_is_something_to_move(program):
    asked = f"{program}\nimport sys\nprint('loaded', *sorted({DRIVERS} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "loaded"
