"""What must not be told: the secrets that this process has met, taken out of any text that leaves it.

A secret is the password of a connection string, PGPASSWORD, or a variable whose name says so (PASSWORD, TOKEN, …).
`hide` is the net behind the messages, which are written without secrets in the first place: it catches what a driver,
a person's own Python step or a mistyped command puts into them.
"""

from __future__ import annotations

import base64
import json
import os.path
import re
import string
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TextIO, cast
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

HIDDEN: Final = "***"

MAX_SECRETS: Final = 10_000
"""How many are remembered, about 2 kB each: more than an environment has. In a process that reads more connection
strings than that the oldest are forgotten."""

_LONG, _SHORT, _VARIED = 12, 6, 4
_GRAM = 3

# Possessive and bounded by the next match, each of them: a text of a megabyte made to be slow takes under a second.
_NAME = r"(?:pg)?(?:password|passwd|pwd)"
_IS = r"(?:\s|[ \t]++)?=(?:\s|[ \t]++)?"
_RUN = re.compile(r"[^\s'\"<>]++")
_LOGIN = re.compile(r"(?<=://)[^/?@:]*+:(?!(?:\*\*\*|…)@)")
_IN_A_QUERY = re.compile(r"(?i)(?<=[?&]password=)[^&\s'\"<>]+")
_SIGNATURE = re.compile(r"(?i)((?<=[?&;])sig=)[^&\s'\"<>;]+|(\bsig=)[^&\s'\"<>;=]++(?:=|%3d){0,2}(?=&s[a-z]{1,3}=)")
_ACCOUNT = re.compile(r"(?i)\b((?:Account|SharedAccess)Key=|SharedAccessSignature=)([^;\s'\"<>]+)")
_IN_CONNINFO = re.compile(rf"(?i)\b({_NAME}{_IS})(?:'((?:[^'\\]|\\.|'')+)'|((?=[^\s'\"\w]*+\w)[^\s'\"&;,)]+))")
_QUOTED = re.compile(
    rf"(?i)\b({_NAME}(?:{_IS}|\\?[\"']\s*+:\s*+|\s?:[ \t]++)(\\?[\"']))"
    r"(?![.,;:]?(?:\s|\2)|[,;:)\]}])(?:(?!\2)(?:\\.|[^\\\n]))+(?=\2)"
)
_AFTER_A_COLON = re.compile(rf"(?i)\b({_NAME}\s?:[ \t]++)([^\s'\",;)]++)")

_TELLING = re.compile(
    r"(?i)pass|pwd|(?:^|_)pw(?:_|$)|secret|token|credential|salt|(?:^|_)sas(?:_|$)|(?:^|_)auth$|authorization$"
    r"|(?:^|_)signature$|(?:access|account|aes|api|decryption|encryption|fernet|hmac|jwt|master|private|shared|signing"
    r"|storage)_?key"
)
_MAYBE_TELLING = re.compile(r"(?i)key(?:_?\d+)?$")
_OF_A_LOGIN = re.compile(r"(?i)auth(?:orization)?$")
_OF_A_PATH = re.compile(r"(?i)(?:file|path|dir|askpass|sslkey)$")
_WORDS = re.compile(r"(?:[a-z]+|[A-Z]+|\d{1,4})?")


class _Known:
    """The secrets of this process, and where to look for each.

    A pattern of all forms of 1,000 secrets takes 3.6 s to compile and 31 ms for a line of 300 characters. So each form
    has an anchor, letters and digits that it has in every way of writing, and a form whose anchor is not in a text is
    not searched there: 0.05 ms for the line, 0.1 s for a megabyte. Three characters of each anchor are looked up first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: dict[tuple[str, str], None] = {}  # replaced, not changed: `taken_out` reads it without the lock
        self._index = (self._secrets, _indexed(self._secrets))

    def add(self, secret: str, user: str) -> None:
        with self._lock:
            if (user, secret) in self._secrets:
                return
            secrets = {**self._secrets, (user, secret): None}
            while len(secrets) > MAX_SECRETS:
                secrets.pop(next(iter(secrets)))
            self._secrets = secrets

    def taken_out(self, text: str) -> str:
        """Return `text` without the secrets, the longest first where two begin at the same place.

        Takes no lock: a signal's handler that prints may have interrupted the one who holds it.
        """
        secrets, (indexed, index) = self._secrets, self._index
        if indexed is not secrets:
            index = _indexed(secrets)
            self._index = (secrets, index)
        if not index:
            return text
        searched = f"{text}\n{unquote(text)}" if "%" in text else text
        grams = set(map("".join, zip(searched, searched[1:], searched[2:], strict=False)))
        there = {
            known
            for gram in ["", *(index.keys() & grams)]
            for anchor, known in index.get(gram, ())
            if anchor in searched
        }
        return _pattern(frozenset(there)).sub(HIDDEN, text) if there else text


def _indexed(secrets: Iterable[tuple[str, str]]) -> dict[str, list[tuple[str, tuple[str, str]]]]:
    """Return the anchors of all forms and whose they are, by their first characters; without an anchor by none."""
    index: dict[str, list[tuple[str, tuple[str, str]]]] = {}
    for user, secret in secrets:
        for written in {secret, *_in_base64(secret, user)}:
            anchor = max(re.findall(r"[A-Za-z0-9]+", written), key=len, default="")
            anchor = anchor if len(anchor) >= _GRAM else ""
            index.setdefault(anchor[:_GRAM], []).append((anchor, (user, secret)))
    return index


_known = _Known()


@lru_cache(maxsize=256)
def _pattern(known: frozenset[tuple[str, str]]) -> re.Pattern[str]:
    return re.compile(
        "|".join(sorted({form for user, secret in known for form in forms(secret, user)}, key=_by_length))
    )


def _by_length(pattern: str) -> tuple[int, str]:
    return -len(pattern), pattern


def remember(secret: str, user: str = "") -> None:
    """Take `secret` out of every text that `hide` is given from now on, if it can be told from other text.

    One that could be an ordinary word or number (``postgres``, ``20131``) is not: a message with all such words
    blotted out is of no use, and the blots give the word away. It is hidden where a password stands, as any other is.
    Of a secret of several lines, such as a key in PEM, each line that can be told from other text is one by itself.

    Args:
        secret: as it is, not encoded.
        user: whose password it is, for the form ``user:password`` in base64.
    """
    if _stands_out(secret):
        _known.add(secret, user)
    lines = [line.strip() for line in re.split(r"[\r\n]+|\\[rn]", secret)]
    for line in lines[: len(lines) if len(lines) > 1 else 0]:
        if _stands_out(line) and not line.startswith("-----"):
            _known.add(line, "")


def _stands_out(secret: str) -> bool:
    kinds = {("letter" if c.isalpha() else "digit" if c.isdigit() else "other") for c in secret}
    varied = len(set(secret)) >= _VARIED
    return varied and (len(secret) >= _LONG or (len(secret) >= _SHORT and len(kinds) > 1))


def remember_words(words: Sequence[str]) -> None:
    """Remember the passwords and signatures in what looks like a URI or a connection string, well-formed or not.

    Args:
        words: of a command, or values of variables.
    """
    for word in words:
        _, separator, rest = word.partition("://")
        login, at, _ = rest.rpartition("@")
        user, colon, password = login.partition(":")
        if separator and at and colon:
            remember(password, unquote(user))
            remember(unquote(password), unquote(user))
        for found in _IN_A_QUERY.findall(word):
            remember(unquote(found))
        for found in re.findall(r"(?i)(?:^|[?&;\s=])sig=([^&\s'\"<>;]+)", word):
            remember(unquote(found))
        for _, found in _ACCOUNT.findall(word):
            remember(found)


def remember_variables(environ: Mapping[str, str]) -> None:
    """Remember what an environment holds: values of variables whose names tell a secret, and secrets within others.

    A name that only ends with KEY (``SORT_KEY``) tells one unless the value is made of words: letters in one case and
    numbers up to four digits, with anything between them.
    """
    for name, value in environ.items():
        telling = _TELLING.search(name) or (_MAYBE_TELLING.search(name) and not _is_words(value))
        if telling and "://" not in value and not _is_path(name, value):
            remember(value)
            if _OF_A_LOGIN.search(name):
                remember(value.partition(":")[2])
                remember(value.rpartition(" ")[2])
        for _, quoted, bare in _IN_CONNINFO.findall(value):
            remember(quoted or bare)
    remember_words([*environ.values()])


def _is_words(value: str) -> bool:
    return all(_WORDS.fullmatch(part) for part in re.split(r"[\W_]", value))


def _is_path(name: str, value: str) -> bool:
    return bool(_OF_A_PATH.search(name)) or (value.startswith("/") and os.path.exists(value))  # noqa: PTH110 - never raises


def hide(text: str) -> str:
    """Return `text` with each remembered secret, and whatever stands where a password or a signature does, as ``***``.

    Finds a secret raw, percent-encoded, escaped as Python, JSON or SQL would, and in base64. The text of JSON may be
    none afterwards: hide its values before (`to_json`). Takes time in proportion to the length, whatever the text is.
    """
    text = _known.taken_out(text)
    if "://" in text:
        text = _RUN.sub(_without_login, text) if "@" in text else text
        text = _IN_A_QUERY.sub(HIDDEN, text)
    folded = text.casefold()
    if "sig" in folded or "accesskey=" in folded or "accountkey=" in folded:
        text = _SIGNATURE.sub(rf"\1\2{HIDDEN}", text)
        text = _ACCOUNT.sub(rf"\1{HIDDEN}", text)
    if "passw" in folded or "pwd" in folded:
        text = _IN_CONNINFO.sub(rf"\1{HIDDEN}", text)
        text = _QUOTED.sub(rf"\1{HIDDEN}", text)
        text = _AFTER_A_COLON.sub(_without_password, text)
    return text


def _without_login(run: re.Match[str]) -> str:
    """Hide from the first colon of the first login to the run's last ``@``."""
    end = run[0].rfind("@")
    found = _LOGIN.search(run[0], 0, end + 1)
    return f"{run[0][: found.end()]}{HIDDEN}{run[0][end:]}" if found else run[0]


def _without_password(found: re.Match[str]) -> str:
    """Hide the word after ``password:``, unless it is prose: letters or digits alone, a path of such, a URI."""
    parts = re.split(r"[-'/_.]", found[2].strip(string.punctuation + "…"))
    prose = "://" in found[2] or all(not part or part.isalpha() or part.isdigit() for part in parts)
    return found[0] if prose else f"{found[1]}{HIDDEN}"


def hide_all(value: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    """Return JSON-ready data with every text in it hidden.

    Names of fields stay: keys of lower-case letters and underscores. Two keys that are hidden stay two.
    """
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        hidden: dict[Any, Any] = {}
        for key, item in value.items():
            name = hide(key) if isinstance(key, str) and not re.fullmatch("[a-z_]+", key) else key
            while name in hidden:
                name += "*"
            hidden[name] = hide_all(item)
        return hidden
    return [hide_all(item) for item in value] if isinstance(value, list | tuple) else value


def to_json(value: object, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """Return `value` as JSON, with its texts hidden before they are escaped; what JSON does not have, as a text.

    Args:
        value: JSON of any shape.
        indent: blanks for each level; None for one line.
        ensure_ascii: no character that a terminal or an old encoding could stumble over.
    """
    return json.dumps(hide_all(value), default=lambda other: hide(str(other)), indent=indent, ensure_ascii=ensure_ascii)


class Hiding:
    """A text stream that hides secrets in what is written to it; everything else is the stream's own.

    It is for pieces that hold a secret whole: a line, a table, a traceback's paragraph.
    """

    def __init__(self, stream: TextIO) -> None:
        """Take the stream to write to."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` without secrets; returns its length, as it was given."""
        self._stream.write(hide(text))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a stream has
        """Return the stream's own."""
        return getattr(self._stream, name)


def hiding(stream: TextIO) -> TextIO:
    """Return a `Hiding` stream as what it stands for."""
    return cast("TextIO", Hiding(stream))


def bare(stream: TextIO) -> TextIO:
    """Return the stream behind a `Hiding` one, for text that is clean and that the net would damage: JSON."""
    return stream._stream if isinstance(stream, Hiding) else stream  # noqa: SLF001 - its other half


def forms(secret: str, user: str = "") -> Iterator[str]:
    """Yield regular expressions for the ways in which a secret is written."""
    yield "".join(_character(character) for character in secret)
    for encoded in _in_base64(secret, user):
        yield re.escape(encoded) + "={0,2}"


def _in_base64(secret: str, user: str) -> Iterator[str]:
    for whole in (secret, f"{user}:{secret}"):
        data = whole.encode(errors="surrogatepass")
        for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
            yield encoded.decode().rstrip("=")


def _character(character: str) -> str:
    escaped = "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))
    written = {character, repr(character)[1:-1], json.dumps(character)[1:-1]}
    written.add(character.encode("unicode_escape").decode())
    if character in "'\"":
        written |= {character * 2, "\\" + character}
    if character == " ":
        written.add("+")
    longest_first = sorted(written, key=len, reverse=True)
    return f"(?:(?i:{escaped})|{'|'.join(re.escape(form) for form in longest_first)})"
