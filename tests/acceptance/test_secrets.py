"""No secret leaves, whatever fails: canaries in connection strings, variables and ~/.pgpass, through failing commands.

Each path is a process. Afterwards its output, log, ledger, every file that it left and the command lines of it
and its children while it ran are searched for the canaries: raw, percent-encoded, in base64, and for any word of them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import support
from aftermath import text_of_ledger
from echo import Echo
from listener import listening
from moving import run_sql
from psycopg import sql

READER, LOADER = "canary_reader", "canary_loader"
CANARIES = {
    "source": "Zebra7@Quartz/Violet#Mango%Lemon ü'\"\\",
    "target": "Otter:Basalt?Indigo&Papaya=8$",
    "wrong": "Heron4@Granite%Crimson",
    "lookup": "Bison!Marble/Scarlet+3",
    "variable": "Falcon-Obsidian-Magenta-5",
    "plain": "Tapir.Feldspar.Ochre.2",
    "account": "/Lynxes8/Onyx+Cobalt4==",
    "signature": "Ibexes5/Umber+Sienna7=",
}
"""What may stand nowhere. Each has characters that drivers, shells, URIs, JSON and SQL treat in their own ways."""

ITEMS = (
    "create table public.items (id int primary key, name text, amount int)",
    "insert into public.items select g, 'name ' || g, g from generate_series(1, 30) g",
)
FLAGS = ("--table", "public.items", "--key", "id", "--chunk", "10")
FILE = """\
job: items
source: {uri: "{SOURCE}", table: public.items}
key: id
chunk: 10
target: {uri: "{TARGET}", table: public.items}
"""
STEPS = """\
import os, sys
def told(frame):
    print(dict(os.environ), file=sys.stderr)
    print(dict(os.environ))
    raise ValueError(f"cannot go on with {dict(os.environ)}")
def chained(frame):
    try:
        raise KeyError(os.environ["ETL_SOURCE_URL"])
    except KeyError as error:
        raise RuntimeError(os.environ["API_TOKEN"]) from error
def at_once(frame):
    sys.exit(os.environ["ETL_TARGET_URL"])
"""


@dataclass(frozen=True)
class Way:
    """One way to fail.

    Attributes:
        args: of ``etl``; ``{SOURCE}`` and the like are URIs.
        says: what the output must have, so that it is known that this way was taken.
        codes: that it may end with.
        file: a job file's text, ``job.yaml``.
        env: over the usual one; None takes a variable away.
        python: a program instead of ``etl``.
        before: a good run, ``etl`` words.
    """

    name: str
    args: tuple[str, ...] = ()
    says: str = ""
    codes: tuple[int, ...] = (2,)
    file: str = ""
    env: dict[str, str | None] = field(default_factory=dict)
    python: str = ""
    before: tuple[str, ...] = ()


def chunked(name, *args, **more):
    return Way(name, ("chunked", *FLAGS, *args), **more)


def with_file(name, text, *args, env=None, **more):
    """The URIs come from the file alone, unless `env` brings them."""
    without: dict[str, str | None] = {"ETL_SOURCE_URL": None, "ETL_TARGET_URL": None}
    return Way(name, ("run", "job.yaml", *args), file=text, env=without if env is None else env, **more)


def changed(old, new):
    assert old in FILE
    return FILE.replace(old, new)


PYTHON = FILE + 'transform:\n  - python: "steps:FUNCTION"\n'
GOOD = ("chunked", *FLAGS)
BAD_ROWS = ("chunked", *FLAGS, "--rule", "small: amount < 20", "--allow-quarantined", "50")

PATHS = [
    # --- the login
    chunked("wrong password", env={"ETL_SOURCE_URL": "{WRONG}"}, says="refuses the user or password"),
    chunked("wrong password of the target", env={"ETL_TARGET_URL": "{WRONG}"}, says="refuses the user or password"),
    chunked("wrong password in a flag", "--source={WRONG}", says="refuses the user or password"),
    chunked("wrong host", env={"ETL_SOURCE_URL": "{NOWHERE}"}, says="no such host"),
    chunked("refused", env={"ETL_TARGET_URL": "{REFUSED}"}, says="nothing listens there"),
    chunked("wrong database", env={"ETL_SOURCE_URL": "{NO_DATABASE}"}, says="no such database"),
    chunked("ADBC's wrong database", "--reader=adbc", env={"ETL_SOURCE_URL": "{NO_DATABASE}"}, says="no such database"),
    chunked("a setting that the server refuses", env={"ETL_SOURCE_URL": "{SOURCE}?options=-c%20nonsense%3D1"}, says="nonsense"),
    chunked("TLS that is not there", env={"ETL_SOURCE_URL": "{SOURCE}?sslmode=verify-full&sslrootcert=/none"}, says="certificate"),
    chunked("a password from ~/.pgpass", "--table=public.none", env={"ETL_SOURCE_URL": "{NO_PASSWORD}"}, says="is not there"),
    chunked("PGPASSWORD", "--rule=x", env={"PGPASSWORD": CANARIES["wrong"]}, says="--rule"),
    # --- the command
    chunked("unknown flag beside a URI", "--sauce={SOURCE}", says="No such option"),
    chunked("a URI where a word is wanted", "--workers={SOURCE}", says="--workers"),
    chunked("a URI as a table", "--table={SOURCE}", says=""),
    chunked("a URI as a key", "--key={SOURCE}", says="--key"),
    chunked("a URI as an argument too many", "job.yaml", "{SOURCE}", says="nexpected extra argument"),
    Way("a URI as a command", ("{SOURCE}",), says="No such command"),
    Way("a URI as a run", ("show", "{SOURCE}"), says="", codes=(2, 3)),
    chunked("a URI as a log file", "--log-file={SOURCE}", says="Change --log-file"),
    chunked("a typo in the scheme", "--source", "postgrseql://u:{wrong}@h/db", says="expected postgresql://"),
    chunked("a password that is not encoded", "--source", "postgresql://u:{raw}@127.0.0.1/db", says="Percent-encode"),
    chunked("a space in front of the host", "--source", "postgresql://u:{wrong}@ 127.0.0.1/db", says="space"),
    chunked("a port that is none", "--source", "postgresql://u:{wrong}@127.0.0.1:54x/db", says="port"),
    chunked("keyword form", "--source", "host=127.0.0.1 password='{raw}'", says="not a URI"),
    # --- the job file
    with_file("a typo in the line of the URI", changed("table: public.items}\nkey", "tabel: public.items}\nkey"), says="tabel"),
    with_file("broken YAML in the line of the URI", changed("table: public.items}\nkey", "table: [public.items}\nkey"), says="expected YAML"),
    with_file("a quote that is missing", changed('"{SOURCE}"', '"{SOURCE}'), says="expected YAML"),
    with_file("a URI as a key", changed("uri:", '"{SOURCE}":'), says="job.yaml line"),
    with_file("a URI as the source", changed('{uri: "{SOURCE}", table: public.items}', '"{SOURCE}"'), says="job.yaml line 2"),
    with_file("a URI in a list", changed('uri: "{SOURCE}"', 'uri: ["{SOURCE}"]'), says="job.yaml line 2"),
    with_file("the password as a key of its own", changed("table: public.items}\nkey", 'password: "${PW}", table: public.items}\nkey'), says="password"),
    with_file("a variable inside the URI", changed("{SOURCE}", "postgresql://canary_reader:${PW}@127.0.0.1:1/db"), says="Percent-encode"),
    with_file("a variable as a number", changed("chunk: 10", 'chunk: "${API_TOKEN}"'), says="chunk"),
    with_file("a variable in a query", changed("table: public.items}\nkey", "query: \"select id from items where name = '${API_TOKEN}' and\"}\nkey"), says="source.query"),
    with_file("a variable in an expression", FILE + "transform:\n  - where: \"name ++ '${API_TOKEN}'\"\n", says="job.yaml line 7"),
    with_file("a variable in a rule that rejects", FILE + "rules:\n  r: \"name = '${API_TOKEN}'\"\n", codes=(1,), says="quarantine"),
    with_file("a lookup with a wrong password", FILE + 'transform:\n  - lookup: {source: {uri: "{LOOKUP}", table: public.items}, on: id, take: {n: name}}\n', says="refuses the user"),
    with_file("a lookup that is not there", FILE + 'transform:\n  - lookup: {source: {uri: "{SOURCE}", table: public.none}, on: id, take: {n: name}}\n', says="public.none"),
    with_file("a lookup's query that fails", FILE + 'transform:\n  - lookup: {source: {uri: "{SOURCE}", query: "select dblink(\'{LOOKUP}\')"}, on: id, take: {n: name}}\n', says="lookup"),
    # --- the query and the drivers
    Way("a query with a URI that does not run", ("chunked", "--key", "id", "--into", "public.q", "--query", "select dblink('{LOOKUP}') as id"), says="source.query"),
    Way("a query with a URI in conninfo", ("chunked", "--key", "id", "--into", "public.q", "--query", "select * from dblink('host=h password={plain}', 'x') as id"), says="source.query"),
    *(
        Way(
            f"{reader}: a row that cannot be read",
            ("chunked", "--key", "id", "--into", "public.q", "--reader", reader, "--query",
             "select id, 1 / (id - 15) as x, '{LOOKUP}' as uri from public.items"),
            says="division by zero", codes=(3,),
        )
        for reader in ("connectorx", "adbc")
    ),
    *(
        Way(
            f"{reader}: text that is cast",
            ("chunked", "--key", "id", "--into", "public.q", "--reader", reader, "--query",
             "select id, (case when id > 15 then '{LOOKUP}' else '1' end)::int as x from public.items"),
            says="", codes=(2, 3),
        )
        for reader in ("connectorx", "adbc")
    ),
    chunked("ADBC as the loader", "--loader=adbc", "--into=public.narrow", codes=(1, 2, 3)),
    # --- Python, faults and tracebacks
    with_file("a Python step that tells the environment", PYTHON.replace("FUNCTION", "told"), "--allow-python", env={}, codes=(2, 3), says="cannot go on"),
    with_file("a Python step with a chain of errors", PYTHON.replace("FUNCTION", "chained"), "--allow-python", env={}, codes=(2, 3), says="job.yaml line 7"),
    with_file("a Python step that exits", PYTHON.replace("FUNCTION", "at_once"), "--allow-python", env={}, codes=(0, 1, 2, 3, 70)),
    with_file("Python without permission", PYTHON.replace("FUNCTION", "told"), says="--allow-python"),
    *(
        chunked(f"a fault, progress {mode}", f"--progress={mode}", env={"KEYHAUL_FAULT": f"{point}:1:raise"}, codes=(70,), says="Traceback")
        for mode, point in (("json", "copy.half"), ("plain", "read.after"), ("off", "ledger.written"))
    ),
    chunked("killed", env={"KEYHAUL_FAULT": "copy.half:2:kill"}, codes=(-9,)),
    chunked("the sessions end under way", "--set=x = id", env={"ETL_RETRIES": "0", "CANARY_TERMINATE": "1", "KEYHAUL_FAULT": "read.before:2:stall"}, codes=(-9, 3, 70)),
    # --- the next command, and looking back
    Way("the next command", ("chunked", *FLAGS, "--source={SOURCE}", "--target={TARGET}", "--rule", "r: amount < 5"), codes=(1,), says="Next: etl"),
    Way("the next command, words apart", ("chunked", *FLAGS, "--source", "{SOURCE}", "--target", "{TARGET}", "--into", "public.checked"), codes=(1, 3), says="etl"),
    *(
        Way(f"etl {words[0]}, {what}", words, env={"ETL_TARGET_URL": uri}, says=says, before=GOOD)
        for words in (("runs",), ("show", "last"), ("quarantine", "last"), ("report", "last"), ("verify", "last", *FLAGS[:4]), ("verify", "last", "--against-ledger"), ("replay", "last", *FLAGS[:4]))
        for what, uri, says in (("wrong password", "{WRONG}", "refuses the user or password"),)
    ),
    Way("etl show of no run", ("show", "nothing"), says="nothing", before=GOOD),
    Way("etl report", ("report", "last", "-o", "page.html", "--show-values"), codes=(0,), before=BAD_ROWS),
    Way("etl quarantine", ("quarantine", "last", "--export", "bad.csv"), codes=(0,), before=BAD_ROWS),
    Way("etl replay", ("replay", "last", *FLAGS[:4], "--check", "small: amount < 20"), codes=(1,), before=BAD_ROWS),
    Way("etl verify --against-ledger", ("verify", "last", "--against-ledger", "--json", "--show-values"), codes=(0,), says='"equal": true', before=(*GOOD, "--checksum")),
    Way("etl verify --against-ledger with a source", ("verify", "last", "--against-ledger", "--source={SOURCE}"), says="got --source", before=(*GOOD, "--checksum")),
    Way("etl plan", ("plan", *FLAGS), codes=(0,)),
    Way("etl check with a wrong password", ("check", "job.yaml"), file='source: {uri: "{WRONG}", table: public.items}\nchecks:\n  - not_null: name\n'),
    Way("etl check with a URI in an expression", ("check", "job.yaml", "--state", "state.jsonl", "--junit", "j.xml"), file='source: {uri: "{SOURCE}", table: public.items}\nchecks:\n  - name: n\n    expression: "name = \'{LOOKUP}\'"\n', codes=(1, 2)),
    # --- for Python, as in a notebook
    Way("the Python API, wrong password", python="import keyhaul, os; keyhaul.runs(os.environ['WRONG'])", env={"WRONG": "{WRONG}"}, codes=(1,), says="ConnectError"),
    Way("the Python API, a job", python="import keyhaul, os; keyhaul.run({'source': os.environ['ETL_SOURCE_URL'], 'table': 'public.none', 'key': 'id', 'target': os.environ['ETL_TARGET_URL']})", codes=(1,), says="Error"),
    Way("the Python API, a report", python="import keyhaul, os; print(keyhaul.run({'source': os.environ['ETL_SOURCE_URL'], 'table': 'public.items', 'key': 'id', 'target': os.environ['ETL_TARGET_URL']})); print(keyhaul.runs(os.environ['ETL_TARGET_URL']).to_dicts())", codes=(0,), says="run_id"),
]  # fmt: skip


@pytest.fixture(scope="module")
def roles(server):
    """Two roles whose passwords are canaries."""
    made = {READER: CANARIES["source"], LOADER: CANARIES["target"]}
    with psycopg.connect(server.uri("postgres"), autocommit=True) as conn:
        for role, password in made.items():
            conn.execute(sql.SQL("create role {} login superuser password {}").format(sql.Identifier(role), password))
    yield
    with psycopg.connect(server.uri("postgres"), autocommit=True) as conn:
        for role in made:
            conn.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def forms_in(data):
    """Return the canaries that `data` holds: whole in any form, or any word of one that is found nowhere else."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    found = []
    for name, canary in CANARIES.items():
        forms = {canary, quote(canary, safe=""), quote(canary, safe="").lower(), quote(canary), repr(canary)[1:-1]}
        forms.add(json.dumps(canary)[1:-1])
        for whole in (canary, f"{READER}:{canary}", f"{LOADER}:{canary}"):
            forms |= {base64.b64encode(whole.encode()).decode(), base64.urlsafe_b64encode(whole.encode()).decode()}
            # In base64 a text inside a longer one begins at one of three places.
            for skip in range(3):
                forms.add(base64.b64encode(b"\0" * skip + whole.encode()).decode()[4:-4])
        forms |= set(re.findall(r"[A-Z][a-z]{4,}", canary))
        found += [f"{name}: {form}" for form in sorted(forms) if form in text]
    return found


class CommandLines:
    """The command lines of a process and of all that descend from it, while the block lasts."""

    def __init__(self, root, *, without_root):
        self.seen = set()
        self._root = root
        self._but = {root} if without_root else set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        while not self._over.wait(0.02):
            parents = {}
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    stat = (process / "stat").read_text()
                    parents[int(process.name)] = int(stat.rpartition(")")[2].split()[1])
            ours = {self._root}
            while more := {child for child, parent in parents.items() if parent in ours} - ours:
                ours |= more
            for pid in ours - self._but:
                with contextlib.suppress(OSError):
                    self.seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def everything_in(folder, but):
    """Return every file below `folder` that the process left, as (name, bytes)."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in but)
    return [(str(path), path.read_bytes()) for path in paths]


@pytest.mark.thin(4)
@pytest.mark.parametrize("way", PATHS, ids=lambda way: way.name)
def test_no_secret_is_told_whatever_fails(etl_home, databases, server, roles, tmp_path, way):
    names = [str(psycopg.conninfo.conninfo_to_dict(uri)["dbname"]) for uri in databases]
    at = f"127.0.0.1:{server.port}"
    login = {name: quote(canary, safe="") for name, canary in CANARIES.items()}
    uris = {
        "SOURCE": f"postgresql://{READER}:{login['source']}@{at}/{names[0]}",
        "TARGET": f"postgresql://{LOADER}:{login['target']}@{at}/{names[1]}",
        "WRONG": f"postgresql://{READER}:{login['wrong']}@{at}/{names[0]}",
        "LOOKUP": f"postgresql://{READER}:{login['lookup']}@{at}/{names[0]}",
        "NOWHERE": f"postgresql://{READER}:{login['wrong']}@no-such-host.invalid/x?sslmode=disable",
        "REFUSED": f"postgresql://{LOADER}:{login['wrong']}@127.0.0.1:1/x",
        "NO_DATABASE": f"postgresql://{READER}:{login['source']}@{at}/no_such_database",
        "NO_PASSWORD": f"postgresql://{READER}@{at}/{names[0]}",
        "raw": CANARIES["wrong"],
        "wrong": login["wrong"],
        "plain": CANARIES["plain"],
    }

    def filled(text):
        for name, uri in uris.items():
            text = text.replace("{" + name + "}", uri)
        return text

    run_sql(databases[0], *ITEMS)
    run_sql(
        databases[1],
        "create table public.narrow (id int primary key, name varchar(6), amount int)",
        "create table public.checked (id int primary key, name text, amount int check (amount < 15))",
    )
    pgpass = tmp_path / "pgpass"
    escaped = CANARIES["source"].replace("\\", "\\\\").replace(":", "\\:")
    pgpass.write_text(f"127.0.0.1:{server.port}:*:{READER}:{escaped}\n")
    pgpass.chmod(0o600)
    usual = {
        "ETL_SOURCE_URL": "{SOURCE}",
        "ETL_TARGET_URL": "{TARGET}",
        "API_TOKEN": CANARIES["variable"],
        "PW": CANARIES["wrong"],
        "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=n;AccountKey={CANARIES['account']};EndpointSuffix=x",
        "AZURE_SAS": f"sv=2022&sig={login['signature']}",
        "PGPASSFILE": str(pgpass),
        "ETL_WORK_DIR": str(tmp_path / "work"),
        "PYTHONPATH": f"{support.clean_environment(etl_home)['PYTHONPATH']}:{tmp_path}",
    }
    env = {name: filled(text) for name, text in (usual | way.env).items() if text is not None}
    (tmp_path / "steps.py").write_text(STEPS)
    (tmp_path / "job.yaml").write_text(filled(way.file))
    good = {name: filled(text) for name, text in usual.items()}
    if way.before:
        done = support.run_etl(etl_home, *way.before, env=good, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    args = [filled(word) for word in way.args]
    logs = args and args[0] in {"chunked", "run", "replay"} and not any("--log-file" in word for word in args)
    words = (
        ["-c", way.python] if way.python else ["-m", "keyhaul", *args, *(["--log-file", "log.jsonl"] if logs else [])]
    )
    process = subprocess.Popen(
        [sys.executable, *words], env=support.clean_environment(etl_home, env), cwd=tmp_path, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    shown = any(form in " ".join(args) for form in (*login.values(), *CANARIES.values()))
    # Whoever gives a URI as a word of the command shows it to this machine; docs/security.md says so.
    with CommandLines(process.pid, without_root=shown) as lines:
        if "CANARY_TERMINATE" in env:
            support.wait_until(lambda: "ChunkDone" in _text(tmp_path / "log.jsonl"), "a chunk")
            process.kill()
        out, err = process.communicate(timeout=60)
    told = (out + err).decode("utf-8", "replace")
    assert process.returncode in way.codes, told
    assert way.says in told
    left = [("stdout", out), ("stderr", err), *((repr(line[:40]), line) for line in lines.seen)]
    left += everything_in(tmp_path, {"job.yaml", "pgpass", "steps.py"})
    with contextlib.suppress(psycopg.Error):
        left.append(("ledger", text_of_ledger(databases[1])))
    assert {name: forms_in(data) for name, data in left if forms_in(data)} == {}


PLACES = {
    "PGPASSFILE": lambda port, file: (file.write_text(f"127.0.0.1:{port}:*:*:{CANARIES['plain']}\n"), str(file))[1],
    "PGPASSWORD": lambda _port, _file: "hunter",  # an ordinary word, which `hide` would not know
    "PGSERVICEFILE": lambda _port, file: (file.write_text(f"[s]\npassword={CANARIES['variable']}\n"), str(file))[1],
}


@pytest.mark.parametrize("command", [("chunked", *FLAGS, "--target"), ("show", "last", "--target")], ids=lambda c: c[0])
@pytest.mark.parametrize("place", PLACES)
def test_a_server_that_repeats_the_password_it_was_given_does_not_tell_it(
    etl_home, databases, tmp_path, place, command
):
    file = tmp_path / "login"
    with listening(Echo()) as server:
        env = {place: PLACES[place](server.port, file), "ETL_SOURCE_URL": databases[0]}
        env |= {"PGSERVICE": "s"} if place == "PGSERVICEFILE" else {}
        file.touch()
        file.chmod(0o600)
        done = support.run_etl(
            etl_home, *command, f"postgresql://bob@127.0.0.1:{server.port}/db", env=env, cwd=tmp_path
        )
    assert done.returncode == 2, done.stderr
    assert "no login with ***, which is ***" in done.stderr
    assert not forms_in(done.stderr.encode())


def _text(path):
    return path.read_text() if path.exists() else ""
