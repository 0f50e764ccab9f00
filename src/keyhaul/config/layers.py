"""What variables, flags and derived defaults add to a job file's values, each layer over the one before."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from keyhaul.config import steps
from keyhaul.config.draft import shown
from keyhaul.config.parts import AUTO
from keyhaul.config.sourcekinds import check_uri, settle_kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.config.draft import Draft, Place
    from keyhaul.config.settings import Form, Setting

    Key = tuple[str, ...]

_NAME_CHARACTERS = 63


def lay(draft: Draft, flags: Mapping[str, object], environ: Mapping[str, str], settings: Sequence[Setting]) -> None:
    """Lay the variables over the file's values, and the flags over both.

    Raises:
        ValueError: a flag that does not exist (a mistake of the caller).
    """
    forms = {setting.place: setting.form for setting in settings}
    variables = {setting.variable: setting.place for setting in settings if setting.variable}
    named = [(flag, setting.place) for setting in settings for flag in setting.flags]
    known = {flag.word: place for flag, place in named if not flag.many}
    unknown = flags.keys() - {flag.word for flag, _ in named} - {"allow_python"}
    if unknown:
        raise ValueError(f"unknown flags {sorted(unknown)}")
    environment = {place: (name, environ[name]) for name, place in variables.items() if environ.get(name)}
    given = {place: (f"--{name.replace('_', '-')}", flags[name]) for name, place in known.items() if name in flags}
    for layer in (environment, given):
        _override(draft, layer, forms)


def lay_columns(draft: Draft, texts: Sequence[str]) -> None:
    """Lay each ``--column 'name type'`` over the types that the file gives; a name with spaces stands in quotes."""
    seen: set[str] = set()
    for number, text in enumerate(texts):
        flag, place = f"--column {shown(text)}", ("--column", number)
        match = re.fullmatch(r'\s*(?:"([^"]+)"|(\S+))\s+(\S.*?)\s*', text)
        name = (match[1] or match[2]) if match else ""
        if match is None or name in seen:
            draft.overrides[place] = flag
            got, hint = ("no type", "") if match is None else (f"column {name} twice", "Remove one")
            draft.refuse(place, got, "a column and its type, such as 'id bigint'", hint)
            continue
        seen.add(name)
        draft.override(("source", "columns", name), match[3], flag)


def _override(draft: Draft, values: Mapping[Key, tuple[str, object]], forms: Mapping[Key, Form]) -> None:
    """Lay one layer, variables or flags, over what is there.

    A table takes the place of a query and the reverse, a source that of the file's path.
    """
    table, query, uri, path = (("source", name) for name in ("table", "query", "uri", "path"))
    for mine, other in ((table, query), (query, table), (uri, path)):
        if mine in values and other not in values:
            draft.forget(other)
    for place, (origin, value) in values.items():
        draft.override(place, _from_text(forms[place], value) if isinstance(value, str) else value, origin)


def _from_text(form: Form, text: str) -> object:
    """Return the value that a flag or a variable means; what cannot be read stays text, the model refuses it."""
    if form == "names":
        return list(steps.split_names(text) or ())
    if form == "number":
        return int(text) if re.fullmatch(r"\s*[-+]?[0-9]{1,20}\s*", text) else text
    if form == "switch":
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    return text


def refuse_python(draft: Draft) -> None:
    """Note each Python step: there was no permission for it."""
    listed = draft.data.get("transform")
    for number, item in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(item, dict) and "python" in item:
            place: Place = ("transform", number, "python")
            got = f"Python code ({draft.show(place, item['python'])})"
            draft.refuse(place, got, "none without permission", "Give --allow-python if you trust it")


def fill_in(draft: Draft, *, must_exist: bool) -> None:
    """Put in the kind of the source and the defaults that depend on other values: tables, key and the job's name.

    Args:
        draft: what the file, the variables and the flags give.
        must_exist: whether a source that is a file must be there.
    """
    kind = settle_kind(draft, must_exist=must_exist)
    source, target = draft.data["source"], draft.data.setdefault("target", {})
    if not isinstance(source, dict) or not isinstance(target, dict):
        return  # the model refuses it
    table, query = kind.complete(draft, source) if kind else None, source.get("query")
    if draft.data.get("key") is not None and kind and not kind.has_key:
        name = kind.model_fields["kind"].default
        draft.refuse(
            ("key",), "a key", f"none for kind {name}: its records are known by file and number", "Leave it out"
        )
    if draft.data.get("key") is None and kind and not kind.needs_key:
        draft.data["key"] = ()
    if target.get("table") is None:
        if query is not None and table is None and draft.data.get("targets") is None:
            draft.refuse(("target", "table"), "nothing", "a table, because the source is a query", "Give --into")
        # Without a table there are targets, or a problem already; "-" keeps the model from telling it twice.
        target["table"] = "-" if draft.data.get("targets") is not None else table or "-"
    if draft.data.get("incremental") is not None and draft.data.get("targets") is None:
        _fill_in_mode(draft, target)
    if source.get("only_new") is True and draft.data.get("targets") is None:
        _fill_in_mode_of_new_files(draft, target)
    if draft.data.get("chunk") == AUTO:
        draft.data["chunk"] = {}
    if draft.data.get("job") is None:
        draft.data["job"] = _default_name(table, query)


def _fill_in_mode(draft: Draft, target: dict[str, object]) -> None:
    """Make upsert the mode of an incremental job; only it and skip know a row that is read a second time."""
    mode = target.get("mode")
    if mode is None:
        target["mode"] = "upsert"
    elif mode in {"append", "replace"}:
        place = ("target", "mode")
        draft.refuse(place, f"{mode} with incremental", "upsert or skip", "Rows inside the lag are read again")


def _fill_in_mode_of_new_files(draft: Draft, target: dict[str, object]) -> None:
    """Make append the mode: each file comes once. Replaced, the table would have the newest files alone."""
    if target.get("mode") is None:
        target["mode"] = "append"
    elif target["mode"] == "replace":
        draft.refuse(("target", "mode"), "replace with only_new", "append, skip or upsert", "Leave only_new out")


def _default_name(table: object, query: object) -> str:
    if isinstance(query, str):
        return f"query-{hashlib.sha256(query.encode()).hexdigest()[:8]}"
    text = str(table or "job").removeprefix("public.")
    bare = re.sub(r'"([^".]*)"', r"\1", text)
    name = re.sub(r"[^\w.-]+", "_", bare).lstrip(".-")
    if name == bare and len(name) <= _NAME_CHARACTERS:
        return name
    # What is left out may be all that tells two tables apart.
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: _NAME_CHARACTERS - 9] or 'job'}-{digest}"


def check_uris(draft: Draft) -> None:
    """Note each URI that cannot be read, with the remedy and without its text."""
    if draft.get(("source", "kind")) == "postgres":
        check_uri(draft, ("source", "uri"))
    check_uri(draft, ("target", "uri"))
