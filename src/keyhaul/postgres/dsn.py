"""Connection strings: one parser, so that each driver gets a URI that it reads the same way.

Verified with connectorx 0.4.6, ADBC 1.13 and psycopg 3.3 on PostgreSQL 18: every part percent-encoded,
a socket directory as the host (``?host=`` is rejected by connectorx), settings in ``options``.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote, unquote

from keyhaul import redaction
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

OPTIONS = frozenset(
    {
        "application_name",
        "channel_binding",
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "options",
        "sslcert",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "target_session_attrs",
        "tcp_user_timeout",
    },
)
"""URI options that libpq and connectorx both understand (tried one by one); any other breaks one of them."""

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_PARTS = frozenset({"host", "port", "user", "password", "dbname"})
FOREIGN = frozenset({"mysql", "mariadb", "mssql", "sqlserver", "oracle", "sqlite", "mongodb", "http", "https", "file"})
_ENCODE = "Percent-encode it: @ is %40, / is %2F, # is %23, % is %25, ? is %3F"
_SHAPE = "postgresql://user:password@host:5432/dbname"
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Dsn:
    """Where a PostgreSQL database is and how to log in; neither its repr nor its label shows the password.

    Parsed from a URI without ``sslmode``, a host that is not this machine gets ``verify-full`` against the
    certificates of ~/.postgresql/root.crt or, without that file, the system's.

    Attributes:
        host: name or address without brackets, or a socket directory, which starts with ``/``.
        user: empty when the URI names none; each driver then takes the operating system's.
        password: empty when the URI has none. psycopg and ADBC then look at PGPASSWORD and ~/.pgpass,
            connectorx does not.
        options: the URI's other parameters, decoded, of `OPTIONS` only.
    """

    host: str
    port: int = 5432
    user: str = ""
    password: str = field(default="", repr=False)
    dbname: str
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, uri: str, where: str) -> Dsn:
        """Read a ``postgresql://`` or ``postgres://`` URI; `where` names the flag, variable or line it is from.

        Raises:
            ConfigError: it cannot be read, or not by all drivers; says what is wrong and what to do,
                and shows no part of the URI.
        """
        authority, path, query = _split(uri.strip(), where)
        userinfo, _, hostport = authority.rpartition("@")
        raw_user, _, raw_password = userinfo.partition(":")
        host, port = _split_host(hostport, where)
        options = _read_query(query, where)
        parts = {"user": raw_user, "password": raw_password, "host": host, "port": port, "dbname": path}
        decoded = {name: _decode(value, where) for name, value in parts.items()}
        for name in sorted(_PARTS & options.keys()):
            if decoded[name]:
                _refuse(where, f"{name} twice", "it once, before or after the ?", f"Remove {name}= after the ?")
            decoded[name] = options.pop(name)
        _check_parts(decoded, options, where)
        redaction.remember(decoded["password"], decoded["user"])
        return cls(
            host=decoded["host"],
            port=int(decoded["port"] or 5432),
            user=decoded["user"],
            password=decoded["password"],
            dbname=decoded["dbname"],
            options=options if _is_local(decoded["host"]) else _with_tls(options),
        )

    def uri(
        self,
        *,
        application_name: str,
        options: Mapping[str, str],
        connect_timeout_seconds: int | None = None,
    ) -> str:
        """Return a URI that connectorx, ADBC and psycopg read alike; it holds the password.

        Args:
            application_name: shown in pg_stat_activity; wins over the one in the user's URI.
            options: session settings such as ``{"statement_timeout": "1000"}``; each wins over the user's.
            connect_timeout_seconds: used unless the user's URI has its own.
        """
        credentials = _quote(self.user) + (f":{_quote(self.password)}" if self.password else "")
        at = f"{credentials}@" if credentials else ""
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("/") else _quote(self.host)
        parameters = self._parameters(application_name, options, connect_timeout_seconds)
        query = "&".join(f"{name}={_quote(value)}" for name, value in parameters.items())
        return f"postgresql://{at}{host}:{self.port}/{_quote(self.dbname)}?{query}"

    def conninfo(
        self,
        *,
        application_name: str,
        options: Mapping[str, str],
        connect_timeout_seconds: int | None = None,
    ) -> str:
        """Return the same as `uri` in libpq's ``name='value'`` form, for ``psycopg.connect``."""
        parts = {"host": self.host, "port": str(self.port), "dbname": self.dbname}
        parts |= {"user": self.user, "password": self.password}
        parts |= self._parameters(application_name, options, connect_timeout_seconds)
        escaped = {name: value.replace("\\", "\\\\").replace("'", "\\'") for name, value in parts.items() if value}
        return " ".join(f"{name}='{value}'" for name, value in escaped.items())

    @property
    def label(self) -> str:
        """``host:port/dbname``, for people: no user, no password."""
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("/") else self.host
        return f"{host}:{self.port}/{self.dbname}"

    @property
    def identity(self) -> str:
        """``host:port/dbname`` with the host in lower case: the same database gives the same text."""
        return self.label if self.host.startswith("/") else self.label.replace(self.host, self.host.lower(), 1)

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine: a socket, ``localhost`` or a loopback address."""
        return _is_local(self.host)

    def _parameters(
        self,
        application_name: str,
        settings: Mapping[str, str],
        connect_timeout_seconds: int | None,
    ) -> dict[str, str]:
        parameters = dict(self.options)
        parameters["application_name"] = application_name
        if connect_timeout_seconds is not None:
            parameters.setdefault("connect_timeout", str(connect_timeout_seconds))
        # The server splits `options` at spaces and lets the last of two equal settings win.
        ours = [f"-c {name}={_escape_setting(value)}" for name, value in settings.items()]
        joined = " ".join([*filter(None, [parameters.pop("options", "")]), *ours])
        return parameters | ({"options": joined} if joined else {})


def _is_local(host: str) -> bool:
    if host.startswith("/") or host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback  # not by its first letters: 127.example.com is elsewhere
    except ValueError:
        return False


def _with_tls(options: Mapping[str, str]) -> Mapping[str, str]:
    """Demand of the server that it proves who it is, unless the URI says otherwise."""
    if "sslmode" in options:
        return options
    secured = {**options, "sslmode": "verify-full"}
    if not (Path.home() / ".postgresql" / "root.crt").exists():
        secured.setdefault("sslrootcert", ssl.get_default_verify_paths().cafile or "system")
    return secured


def redact(text: str, *dsns: Dsn) -> str:
    """Return `text` with every form of the passwords replaced by ``***``, and what `redaction.hide` knows besides.

    Finds them raw, percent-encoded (wholly or in part, either case of hex), with ``+`` for a space,
    escaped as Python, JSON or SQL would, and in base64 (alone or as ``user:password``); also one that is a common word.
    """
    patterns = [form for dsn in dsns if dsn.password for form in redaction.forms(dsn.password, dsn.user)]
    patterns.sort(key=len, reverse=True)
    return redaction.hide(re.sub("|".join(patterns), redaction.HIDDEN, text) if patterns else text)


def _refuse(where: str, got: str, expected: str, hint: str) -> NoReturn:
    message = f"{where}: got {got}, expected {expected}. {hint}"
    raise ConfigError(message)


def _quote(text: str) -> str:
    return quote(text, safe="")


def _escape_setting(value: str) -> str:
    return re.sub(r"([\s\\])", r"\\\1", value)


def _decode(text: str, where: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()
    except UnicodeError:
        _refuse(where, "bytes that are not UTF-8", "UTF-8 text, percent-encoded", _ENCODE)
    if "\0" in decoded:
        _refuse(where, "the character %00", "text without it", "Remove it")
    return decoded


def _split(uri: str, where: str) -> tuple[str, str, str]:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        _refuse(where, "text that is not a URI" if uri else "nothing", f"{_SHAPE} or embedded", "Write the whole URI")
    if scheme.lower() not in {"postgresql", "postgres"}:
        # Another scheme is shown only when it is a well-known word: it might be part of a password.
        shown = f"scheme {scheme.lower()}" if scheme.lower() in FOREIGN else "an unknown scheme"
        _refuse(where, shown, "postgresql://", "Only PostgreSQL databases can be named here")
    if re.search(r"[\s\x00-\x1f\x7f]", rest):
        _refuse(where, "a space or control character", "none in a URI", "Percent-encode it: a space is %20")
    if "#" in rest:
        _refuse(where, 'a raw "#"', "none, in the password for example", _ENCODE)
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        _refuse(where, 'a "%" that two hexadecimal digits do not follow', "%25 for a percent sign", _ENCODE)
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    if authority.count("@") > 1 or "@" in path + query:
        got = 'an "@", "/" or "?" inside the user name or the password (or an "@" after the host)'
        _refuse(where, got, 'one "@", before the host', _ENCODE)
    if "/" in path:
        _refuse(where, 'a second "/" after the host', "one, before the database name", _ENCODE)
    return authority, path, query


def _split_host(hostport: str, where: str) -> tuple[str, str]:
    if "," in hostport:
        _refuse(where, "several hosts", "one", "Name the primary server alone")
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(.*))?", hostport)
    if bracketed:
        return bracketed[1], bracketed[2] or ""
    if "[" in hostport or "]" in hostport or hostport.count(":") > 1:
        _refuse(where, "a malformed host", "host:port, or [address]:port for IPv6", f"Write {_SHAPE}")
    host, _, port = hostport.partition(":")
    return host, port


def _read_query(query: str, where: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, separator, value = (_decode(part, where) for part in item.partition("="))
        if name not in OPTIONS | _PARTS:
            # An unknown name is not shown, it may be a piece of a password with a "?" in it.
            near = difflib.get_close_matches(name, sorted(OPTIONS | _PARTS), 1)
            expected = near[0] if near else f"only {', '.join(sorted(OPTIONS))}"
            _refuse(
                where, 'an unknown option after the "?"', expected, "Correct or remove it, all drivers must read it"
            )
        if not separator or name in out:
            _refuse(
                where, f"option {name} {'twice' if separator else 'without a value'}", f"{name}=value once", "Fix it"
            )
        out[name] = value
    return out


def _check_parts(parts: Mapping[str, str], options: Mapping[str, str], where: str) -> None:
    host, port = parts["host"], parts["port"]
    if not host:
        _refuse(where, "no host", _SHAPE, "Name the host, or a socket directory: @%2Fvar%2Frun%2Fpostgresql:5432")
    if not host.startswith("/") and not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:.]+", host):
        _refuse(where, "a host with a character that no host name has", "a name or an address", _ENCODE)
    if port and (not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= _MAX_PORT):
        _refuse(where, "a port that is not a number from 1 to 65535", "host:5432", f"Or is it the password? {_ENCODE}")
    if not parts["dbname"]:
        _refuse(where, "no database name", _SHAPE, "Add / and the name after the host")
    if options.get("sslmode", "prefer") not in SSL_MODES:
        _refuse(where, "an unknown sslmode", f"one of {', '.join(SSL_MODES)}", "Correct it")
    if not options.get("connect_timeout", "0").isdecimal():
        _refuse(where, "a connect_timeout that is not a number", "whole seconds", "Correct it")
