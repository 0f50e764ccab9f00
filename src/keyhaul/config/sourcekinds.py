"""The kinds of sources: what each has under ``source:``, and how the kind is told from a URI, a path or ``kind:``.

A further kind is one class, here or in a module of its own, and its name in `Source`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args
from urllib.parse import unquote

from pydantic import Discriminator

from keyhaul.config.filesource import FilesSource
from keyhaul.config.parts import EMBEDDED, EMBEDDED_TABLE, EVERYWHERE, Flag, setting
from keyhaul.config.sourcekind import PLACE, SourceKind, either, kind_setting, uri_setting
from keyhaul.errors import ConfigError
from keyhaul.postgres.dsn import FOREIGN, Dsn
from keyhaul.storeaddress import is_remote

if TYPE_CHECKING:
    from keyhaul.config.draft import Draft, Place


class TablesSource(SourceKind):
    """A source of tables; exactly one of `table` and `query` is given."""

    table: str | None = setting(
        None,
        f"Table or view to read; {EMBEDDED_TABLE} when the source is embedded.",
        "a table such as public.flights",
        Flag("--table", value="T", help="Table or view to read.", commands=EVERYWHERE),
        "ETL_TABLE",
        min_length=1,
    )
    query: str | None = setting(
        None,
        "SELECT to read instead of a table.",
        "a SELECT",
        Flag("--query", value="SQL", help="SELECT to read instead of a table.", commands=EVERYWHERE),
        "ETL_QUERY",
        min_length=1,
    )
    time_zone: str | None = setting(
        None,
        "Zone in which timestamps without a zone are meant, for a target column with one (and the reverse).",
        "a zone such as Europe/Berlin",
        (),
        "ETL_TIME_ZONE",
        min_length=1,
    )

    @property
    def read_table(self) -> str | None:
        """The table that is read, as a person gave it; None for a query."""
        return self.table

    @property
    def rows(self) -> dict[str, Any]:
        """The table or the query, by that name."""
        return {"table": self.table} if self.query is None else {"query": self.query}

    @classmethod
    def complete(cls, draft: Draft, body: dict[str, Any]) -> str | None:
        """Demand exactly one of a table and a query."""
        table, query = body.get("table"), body.get("query")
        if table is not None and query is not None:
            draft.refuse((*PLACE, "query"), "both a table and a query", "one of them", "Remove one")
        elif table is None and query is None:
            draft.refuse((*PLACE, "table"), "nothing", "a table or a query", "Give --table or --query")
        return table if isinstance(table, str) else None


class PostgresSource(TablesSource):
    """A PostgreSQL database: a server's, or the embedded one."""

    schemes = ("postgresql", "postgres")
    words = (EMBEDDED,)

    kind: Literal["postgres"] = kind_setting("postgres")
    uri: str = uri_setting(EMBEDDED)
    reader: Literal["connectorx", "adbc"] | None = setting(
        None,
        "The library that reads; by default connectorx, and adbc where TLS verifies the server.",
        "connectorx or adbc",
        Flag("--reader", value="NAME", help="connectorx or adbc.", commands=EVERYWHERE),
        "ETL_READER",
    )
    only: bool = setting(
        default=False,
        meaning="Read the table without the rows of tables that inherit from it, which otherwise come along.",
        expected="true or false",
        flags=Flag("--only", help="Leave out the rows of tables that inherit from it.", commands=EVERYWHERE),
        variable="ETL_ONLY",
    )

    def identity(self) -> dict[str, Any]:
        """Return host, port and name of the database, and what is read of it."""
        database = EMBEDDED if self.uri == EMBEDDED else Dsn.parse(self.uri, "source.uri").identity
        return {"database": database, **self.rows, **({"only": True} if self.only else {})}

    @classmethod
    def complete(cls, draft: Draft, body: dict[str, Any]) -> str | None:
        """Take the flights of the embedded database where nothing else is named."""
        if body.get("only") is True and body.get("query") is not None:
            draft.refuse((*PLACE, "only"), "a query", "a table", "Write it in the query: … from only TABLE")
        if body.get("table") is None and body.get("query") is None and body.get("uri", EMBEDDED) == EMBEDDED:
            body["table"] = EMBEDDED_TABLE
        return super().complete(draft, body)


class SqliteSource(TablesSource):
    """A SQLite file."""

    schemes = ("sqlite",)
    endings = (".db", ".sqlite", ".sqlite3")
    needs_key = False

    kind: Literal["sqlite"] = kind_setting("sqlite")
    path: str = setting(..., "The file, from the current directory; in place of uri.", "a path", min_length=1)

    def identity(self) -> dict[str, Any]:
        """Return the file's whole path, and what is read of it."""
        return {"database": f"sqlite:///{Path(self.path).resolve()}", **self.rows}


Source = PostgresSource | SqliteSource | FilesSource
AnySource = Annotated[Source, Discriminator("kind")]
KINDS: Final[dict[str, type[Source]]] = {kind.model_fields["kind"].default: kind for kind in get_args(Source)}


def settle_kind(draft: Draft, *, must_exist: bool = True) -> type[Source] | None:
    """Find the kind of the draft's source, put it in and read a URI that means a file into `path`.

    Args:
        draft: what the file, the variables and the flags give.
        must_exist: whether a path without a file is a mistake.

    Returns:
        The kind; None after a mistake, which is noted, and then nothing else is to be said of the source.
    """
    body = draft.data.setdefault("source", {})
    if not isinstance(body, dict):
        return None  # the model refuses it
    before = len(draft.problems)
    kind = _kind_of(draft, body)
    if kind is None or len(draft.problems) > before:
        draft.data["source"] = {"kind": "postgres", "table": "-"}  # one message is enough
        return None
    body["kind"] = kind.model_fields["kind"].default
    _refuse_of_others(draft, body, kind)
    if "path" in kind.model_fields:
        _read_path(draft, body, kind, must_exist=must_exist)
    return kind


def kinds_with(name: str) -> tuple[str, ...]:
    """Return the kinds that have a setting, in their order."""
    return tuple(kind for kind, model in KINDS.items() if name in model.model_fields)


def known_kinds() -> str:
    """Return what each kind is known by, for a message."""
    return ", or ".join(f"{model.described()} (kind {kind})" for kind, model in KINDS.items())


def _kind_of(draft: Draft, body: dict[str, Any]) -> type[Source] | None:
    said, uri, path = body.get("kind"), body.get("uri"), body.get("path")
    if uri is not None and path is not None:
        draft.refuse((*PLACE, "path"), "both a uri and a path", "one of them", "Remove one")
        return None
    place: Place = (*PLACE, "uri" if path is None else "path")
    told = _by_address(uri if path is None else path)
    if said is None or (told is not None and place in draft.overrides):
        if told is None:
            _refuse_address(draft, place, uri if path is None else path)
        return told
    if not isinstance(said, str) or said not in KINDS:
        at = (*PLACE, "kind")
        draft.refuse(at, draft.show(at, said), f"one of {', '.join(KINDS)}")
        return None
    return KINDS[said]


def _by_address(address: object) -> type[Source] | None:
    if address is None or address == EMBEDDED:
        return PostgresSource
    if isinstance(address, list | tuple) and address:
        return _by_address(address[0])
    if not isinstance(address, str):
        return None
    scheme, separator, _ = address.strip().partition("://")
    if separator:
        return next((kind for kind in KINDS.values() if scheme.lower() in (*kind.schemes, *kind.stores)), None)
    if re.match(r"[^/]*:[^/]*@", address):  # a login: a URI without its scheme
        return None
    plain = address.lower()
    for packed in FilesSource.packed:
        plain = plain.removesuffix(packed)
    found = next((kind for kind in KINDS.values() if plain.endswith(kind.endings or ("\0",))), None)
    return FilesSource if found is None and len(address) > 1 and Path(address).is_dir() else found


def _refuse_address(draft: Draft, place: Place, address: object) -> None:
    if not isinstance(address, str):
        draft.refuse(place, draft.show(place, address), known_kinds())
        return
    scheme, separator, _ = address.strip().partition("://")
    # Another scheme is shown only when it is a well-known word: it might be part of a password.
    got = f"scheme {scheme.lower()}" if scheme.lower() in FOREIGN else "an unknown scheme"
    if not separator:
        got = "text that is not a URI, nor a path of a known kind" if address else "nothing"
    draft.refuse(place, got, known_kinds(), "Correct it, or say the kind: in a job file")


def _refuse_of_others(draft: Draft, body: dict[str, Any], kind: type[Source]) -> None:
    """Note each setting that only other kinds have."""
    own = kind.model_fields
    for name in body:
        if name not in own and (others := kinds_with(name)):
            got = f"a {name} for a source of kind {own['kind'].default}"
            draft.refuse((*PLACE, name), got, f"it for kind {either(others)} only", "Leave it out")


def _read_path(draft: Draft, body: dict[str, Any], kind: type[Source], *, must_exist: bool) -> None:
    place: Place = (*PLACE, "uri" if "path" not in body else "path")
    given = body.get("uri", body.get("path"))
    if given is None:
        draft.refuse((*PLACE, "path"), "nothing", f"a path or {kind.described()}", "Give --source")
        body["path"] = "-"
        return
    if not isinstance(given, str):
        return  # the model refuses it, or it is a list of paths
    path = given.strip() if place[-1] == "uri" else given
    if place[-1] == "uri" and "://" in path and not (kind.stores and is_remote(path)):
        path = _path_of_uri(draft, place, path, kind)
    body["path"] = path
    body.pop("uri", None)
    if kind is FilesSource:
        return  # a glob or a folder as well: who opens them says what is missing
    if must_exist and place not in draft.problems and not Path(path).is_file():
        got = f"{draft.show(place, path)}, which is {'a folder' if Path(path).is_dir() else 'not there'}"
        hint = "Correct the path"
        if "://" in given and not path.startswith("/") and Path(f"/{path}").is_file():
            hint = "A path from the root has four slashes"
        draft.refuse(place, got, "a file", hint)


def _path_of_uri(draft: Draft, place: Place, uri: str, kind: type[Source]) -> str:
    """Return the path in ``scheme:///path``; a fourth slash begins a path from the root, as SQLAlchemy has it."""
    scheme, _, rest = uri.partition("://")
    if scheme.lower() not in kind.schemes:
        name = kind.model_fields["kind"].default
        draft.refuse(place, f"a URI of another kind for kind {name}", kind.described())
    elif not rest.startswith("/"):
        draft.refuse(place, "a host, or two slashes", f"three, as in {scheme.lower()}:///shop.db")
    elif re.search(r"[?#]", rest):
        draft.refuse(place, 'a "?" or "#" after the path', "a path alone", "Percent-encode it: ? is %3F, # is %23")
    return unquote(rest.removeprefix("/")) or "-"


def check_uri(draft: Draft, place: Place) -> None:
    """Note the URI of a PostgreSQL database that cannot be read, with the remedy and without its text."""
    uri = draft.get(place)
    if isinstance(uri, str) and uri != EMBEDDED and place not in draft.problems:
        try:
            Dsn.parse(uri, draft.heading(place))
        except ConfigError as error:
            draft.problems[place] = str(error)
