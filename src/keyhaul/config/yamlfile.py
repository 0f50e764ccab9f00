"""A strict reading of one YAML job file: plain data, the line of every key, and all mistakes at once.

YAML here is mappings, lists, text, whole numbers, decimals, ``true``, ``false`` and null. Anchors, aliases,
merge keys, tags and several documents are refused; ``on``, ``yes``, ``no`` and dates are text.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import Composer
from yaml.resolver import Resolver

from keyhaul.config.draft import Draft, Place, WrittenNumber, shown, spell
from keyhaul.errors import ConfigError
from keyhaul.redaction import remember_variables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MAX_BYTES = 128_000
"""PyYAML takes up to 2.5 µs for each (lines, or words of one character)."""
MAX_DEPTH = 20
MAX_VALUES = 10_000
"""Keys and values; PyYAML takes up to 40 µs for each, so that the largest file is refused in half a second."""
MAX_PROBLEMS = 20
MAX_TEXT = 1_000_000
"""Characters of one value after its variables are put in."""
_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}|\Z)")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_STR = "tag:yaml.org,2002:str"
_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))


class _Loader(Composer, Resolver):
    """PyYAML's composer with the few scalar types of this module, over events that are parsed and checked already."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own declaration

    def __init__(self, events: Iterable[yaml.Event]) -> None:
        Composer.__init__(self)
        Resolver.__init__(self)
        self._events = deque(events)

    def check_event(self, *kinds: type[yaml.Event]) -> bool:
        return not kinds or isinstance(self._events[0], kinds)

    def peek_event(self) -> yaml.Event:
        return self._events[0]

    def get_event(self) -> yaml.Event:
        return self._events.popleft()


for _tag, _pattern, _first in (
    (_NULL, r"(?:~|null|)", ["~", "n", ""]),
    (_BOOL, r"(?:true|false)", list("tf")),
    (_INT, r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (_FLOAT, r"[-+]?[0-9]+\.[0-9]+(?:[eE][-+]?[0-9]+)?", list("-+0123456789")),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^{_pattern}$"), _first)


def read_yaml(path: Path, environ: Mapping[str, str]) -> Draft:
    """Return the file as a `Draft`: values with ``${NAME}`` replaced, and the line of each key.

    ``${NAME}`` is the variable's text, ``${NAME:-text}`` has a default for a variable that is unset or
    empty, ``$${`` is a plain ``${``. What is wrong with a single value or key (an unset variable, a key
    given twice) is noted in the draft, so that it can be told together with later findings.

    Raises:
        ConfigError: the file cannot be read, is too large, is not YAML, or uses what this module refuses.
    """
    name = str(path)
    return read_text(_read_text(path, name), name, environ)


def read_text(text: str, name: str, environ: Mapping[str, str]) -> Draft:
    """Return what `read_yaml` does of a text; `name` is what messages call it.

    Raises:
        ConfigError: the text is not YAML, or uses what this module refuses.
    """
    root = _Loader(_checked_events(text, name)).get_single_node()
    draft = Draft(file=name)
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1 if root else 1
        message = f"{name} line {line}: got no keys, expected a mapping such as `key: id`. See `etl schema`"
        raise ConfigError(message)
    draft.data = _mapping(root, (), draft, environ)
    return draft


def _read_text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or "an error"
        message = f"read {name}: got {reason.lower()}, expected a readable job file. Correct the path"
        raise ConfigError(message) from error
    if len(data) > MAX_BYTES:
        message = f"read {name}: got more than {MAX_BYTES} bytes, expected a job file. Is it another kind of file?"
        raise ConfigError(message)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = f"{name} line {line}: got bytes that are not UTF-8, expected UTF-8. Save the file as UTF-8"
        raise ConfigError(message) from None


def _checked_events(text: str, name: str) -> list[yaml.Event]:
    """Parse, and refuse what the format allows and a job file does not, before anything is built or expanded."""
    events: list[yaml.Event] = []
    problems: list[str] = []
    depth = documents = values = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            events.append(event)
            values += isinstance(event, yaml.NodeEvent)
            if values > MAX_VALUES:
                problems.append(f"{name}: got more than {MAX_VALUES} keys and values, expected a job file")
                break
            documents += isinstance(event, yaml.DocumentStartEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            found = _forbidden(event, depth, documents)
            if found:
                line = event.start_mark.line + 1 if event.start_mark else 1
                problems.append(f"{name} line {line}: {found}")
            if depth > MAX_DEPTH or len(problems) >= MAX_PROBLEMS:
                break
    except yaml.YAMLError as error:
        raise ConfigError("\n".join([*problems, _syntax_message(name, error)])) from None
    except (ValueError, OverflowError):  # a version or a code of a character that Python cannot hold
        message = f"{name}: got a %YAML version or an escaped character out of range, expected YAML. Correct it"
        raise ConfigError("\n".join([*problems, message])) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return events


def _forbidden(event: yaml.Event, depth: int, documents: int) -> str:
    if isinstance(event, yaml.AliasEvent):
        return "got a YAML alias (*), expected the value itself. Write it out"
    if isinstance(event, yaml.DocumentStartEvent) and documents > 1:
        return "got a second YAML document (---), expected one. Put each job into its own file"
    if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
        return "got a YAML merge key (<<), expected plain keys. Write the values out"
    if isinstance(event, yaml.NodeEvent) and event.anchor:
        return "got a YAML anchor (&), expected the value alone. Remove it"
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
        return "got a YAML tag (!), expected the value alone. Remove it, or quote the text"
    return f"got more than {MAX_DEPTH} levels, expected a job file" if depth > MAX_DEPTH else ""


def _syntax_message(name: str, error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        # PyYAML's problem names a token or one character, never the text of the line.
        problem = "the parser says: " + (error.problem or "a syntax error").replace("\t", "\\t")
    else:
        line, problem = 1, "got a character that YAML does not allow"
    hint = "Check the indentation (spaces, no tabs), the colons and the quotes"
    return f"{name} line {line}: {problem}, expected YAML. {hint}"


def _value(node: yaml.Node, place: Place, draft: Draft, environ: Mapping[str, str]) -> object:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, draft, environ)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            draft.lines[*place, index] = item.start_mark.line + 1
            items.append(_value(item, (*place, index), draft, environ))
        return items
    return _scalar(node, place, draft, environ)


def _mapping(node: yaml.MappingNode, place: Place, draft: Draft, environ: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    repeated: list[tuple[Place, int]] = []
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag != _STR:
            text = shown(key_node.value if isinstance(key_node, yaml.ScalarNode) else [])
            message = f"{draft.file} line {line}: {spell(place) or 'the file'}: got key {text}, expected text"
            draft.problems[*place, f"line {line}"] = f"{message}. Quote it if it is a name"
            continue
        key = _joined(str(key_node.value), place, draft)
        if key in out:
            repeated.append(((*place, key), line))
            continue
        draft.lines[*place, key] = line
        out[key] = _value(value_node, (*place, key), draft, environ)
    for at, line in repeated:
        message = f"{draft.file} line {line}: {spell(at)}: got the key twice (first in line {draft.lines[at]})"
        draft.problems[at] = f"{message}, expected it once. Remove one"
    return out


def _scalar(node: yaml.Node, place: Place, draft: Draft, environ: Mapping[str, str]) -> object:
    text, tag = _joined(str(node.value), place, draft), str(node.tag)
    if tag == _STR and "${" in text:
        draft.written[place] = text, isinstance(node, yaml.ScalarNode) and node.style is None
        text = _interpolate(text, place, draft, environ)
        if isinstance(node, yaml.ScalarNode) and node.style is None and text:
            # Written without quotes, `chunk: ${ROWS}` is the number that the variable holds.
            tag = str(_Loader(()).resolve(yaml.ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call]  # not in its stubs
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text == "true"
    if tag == _INT:
        return _whole_number(text, place, draft)
    return WrittenNumber(text) if tag == _FLOAT else text


def _joined(text: str, place: Place, draft: Draft) -> str:
    r"""Join the halves of characters that are escaped as JSON does (``\\ud83d\\ude00``), which PyYAML leaves apart."""
    try:
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        joined = "\0"
    if "\0" in joined:
        draft.refuse(place, "a character that PostgreSQL cannot hold", "text without NUL and half characters")
        return ""
    return joined


def _whole_number(text: str, place: Place, draft: Draft) -> int | None:
    try:
        return int(text)
    except ValueError:  # Python reads at most 4300 digits
        draft.refuse(place, f"a number of {len(text)} digits", "a smaller one")
        return None


def _interpolate(text: str, place: Place, draft: Draft, environ: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        parts = _NAME.fullmatch(match[1])
        if not parts or not match[2]:
            draft.refuse(place, 'a malformed "${"', "${NAME} or ${NAME:-default}", "Write $${ for a plain ${")
            return ""
        name, default = parts[1], parts[2]
        value = environ.get(name)
        if value is None and default is None:
            hint = f"Set {name}, or write ${{{name}:-default}}"
            draft.refuse(place, f"${{{name}}}, which is not set", f"the environment variable {name}", hint)
            return ""
        if value and not (default is not None and value == default):
            draft.secret.add(place)
            remember_variables({name: value})
        return value or default or ""

    length = 0

    def counted(match: re.Match[str]) -> str:
        nonlocal length
        put_in = replace(match) if length <= MAX_TEXT else ""
        length += len(put_in)
        return put_in

    whole = _VARIABLE.sub(counted, text)
    if length > MAX_TEXT:
        draft.refuse(place, f"more than {MAX_TEXT} characters from variables", "a shorter text")
        return ""
    return whole
