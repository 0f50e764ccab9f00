"""What connection strings promise: one meaning for every driver, and a password that never shows."""

from __future__ import annotations

import base64
import pickle
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from keyhaul import redaction
from keyhaul.errors import ConfigError
from keyhaul.postgres.dsn import Dsn, redact

NASTY = "@/#%?:&=+ ü'\"\\;[]€𝄞%41"
WHERE = "source.uri (flag --source)"
passwords = st.text(
    st.one_of(st.sampled_from(NASTY), st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    max_size=20,
)
names = passwords.filter(bool)


def make(**changes: object) -> Dsn:
    """Return a Dsn with some fields changed."""
    fields: dict[str, object] = {"host": "db.example", "user": "ann", "password": "pw", "dbname": "shop"} | changes
    return Dsn(**fields)  # type: ignore[arg-type]  # a dict of all kinds of values


def test_a_full_uri_is_taken_apart_and_decoded() -> None:
    dsn = Dsn.parse("postgres://ann:p%40%2F%23%25@DB.example:6543/my%20shop?sslmode=require", WHERE)
    assert dsn == Dsn(
        host="DB.example",
        port=6543,
        user="ann",
        password="p@/#%",
        dbname="my shop",
        options={"sslmode": "require"},
    )
    assert dsn.label == "DB.example:6543/my shop"
    assert dsn.identity == "db.example:6543/my shop"


def test_the_port_is_5432_when_none_is_given() -> None:
    assert Dsn.parse("postgresql://ann@localhost/shop", WHERE).port == 5432


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://ann:pw@%2Fvar%2Frun:6000/shop",
        "postgresql://ann:pw@/shop?host=/var/run&port=6000",
        "postgresql:///shop?host=%2Fvar%2Frun&port=6000&user=ann&password=pw",
        "postgresql:///?host=%2Fvar%2Frun&port=6000&user=ann&password=pw&dbname=shop",
    ],
)
def test_a_socket_directory_may_stand_in_either_place(uri: str) -> None:
    dsn = Dsn.parse(uri, WHERE)
    assert dsn == make(host="/var/run", port=6000)
    assert dsn.is_local
    assert dsn.uri(application_name="k", options={}) == (
        "postgresql://ann:pw@%2Fvar%2Frun:6000/shop?application_name=k"
    )


def test_an_ipv6_address_keeps_its_brackets() -> None:
    dsn = Dsn.parse("postgresql://ann:pw@[::1]:6000/shop", WHERE)
    assert (dsn.host, dsn.port, dsn.is_local, dsn.label) == ("::1", 6000, True, "[::1]:6000/shop")
    assert dsn.uri(application_name="k", options={}).startswith("postgresql://ann:pw@[::1]:6000/shop?")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("localhost", "LocalHost", "127.0.0.9", "::1")),
        *(
            (host, False)
            for host in ("db.example", "127.example.com", "127.0.0.1.example.com", "localhost.example.com")
        ),
        *((host, False) for host in ("127.1", "128.0.0.1", "fe80::1", "10.0.0.1")),
    ],
)
def test_a_loopback_host_is_local(host: str, *, local: bool) -> None:
    assert make(host=host).is_local is local


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("postgresql://ann:CANARY@x@host/db", "@ is %40, / is %2F, # is %23, % is %25"),
        ("postgresql://ann:CANARY/x@host/db", "@ is %40, / is %2F, # is %23, % is %25"),
        ("postgresql://ann:12/CANARY@host/db", "@ is %40, / is %2F, # is %23, % is %25"),
        ("postgresql://ann:CANARY#x@host/db", '"#"'),
        ("postgresql://ann:CANARY?x@host/db", "? is %3F"),
        ("postgresql://ann:CANARY%x@host/db", "%25 for a percent sign"),
        ("postgresql://ann:CANARY%@host/db", "%25 for a percent sign"),
        ("postgresql://ann:CANARY%FF@host/db", "not UTF-8"),
        ("postgresql://ann:CANARY%00@host/db", "%00"),
        ("postgresql://ann:CANARY x@host/db", "a space is %20"),
        ("postgresql://ann:CANARY@host/db/more", 'a second "/"'),
        ("postgresql://ann:CANARY@host:70000/db", "a port that is not a number from 1 to 65535"),
        ("postgresql://ann:CANARY@host:0/db", "a port that is not a number from 1 to 65535"),
        ("postgresql://ann:CANARY@host:x/db", "a port that is not a number"),
        ("postgresql://ann:CANARY/db", "Or is it the password?"),
        ("postgresql://ann:CANARY@h1,h2/db", "several hosts"),
        ("postgresql://ann:CANARY@[::1/db", "a malformed host"),
        ("postgresql://ann:CANARY@ho!st/db", "a host with a character"),
        ("postgresql://ann:CANARY@/db", "no host"),
        ("postgresql://ann:CANARY@host", "no database name"),
        ("postgresql://ann:CANARY@host/db?CANARY=1", "an unknown option"),
        ("postgresql://ann:CANARY@host/db?ssl_mode=require", "expected sslmode"),
        ("postgresql://ann:CANARY@host/db?sslmode=yes", "an unknown sslmode"),
        ("postgresql://ann:CANARY@host/db?sslmode", "without a value"),
        ("postgresql://ann:CANARY@host/db?options=a&options=b", "option options twice"),
        ("postgresql://ann:CANARY@host/db?password=x", "password twice"),
        ("postgresql://ann:CANARY@host/db?connect_timeout=soon", "connect_timeout"),
        ("mysql://ann:CANARY@host/db", "got scheme mysql, expected postgresql://"),
        ("CANARY://ann@host/db", "an unknown scheme"),
        ("host=x password=CANARY", "text that is not a URI"),
        ("", "got nothing"),
    ],
)
def test_a_wrong_uri_is_refused_with_the_remedy_and_without_its_text(uri: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Dsn.parse(uri, WHERE)
    message = str(caught.value)
    assert message.startswith("source.uri (flag --source): got ")
    assert says in message
    assert "CANARY" not in message


def test_neither_repr_nor_label_shows_the_password() -> None:
    dsn = make(password="CANARY")
    assert "CANARY" not in repr(dsn) + str(dsn) + dsn.label + dsn.identity


def test_a_dsn_can_be_hashed_and_pickled() -> None:
    dsn = make(options={"sslmode": "require"})
    assert pickle.loads(pickle.dumps(dsn)) == dsn  # noqa: S301  # our own bytes
    assert hash(dsn) == hash(make())


@given(password=passwords, user=names, dbname=names)
def test_libpq_reads_back_what_was_put_into_uri_and_conninfo(password: str, user: str, dbname: str) -> None:
    dsn = make(password=password, user=user, dbname=dbname, port=6000)
    wanted = {"host": "db.example", "port": "6000", "user": user, "dbname": dbname, "application_name": "k"}
    wanted |= {"password": password} if password else {}
    assert conninfo_to_dict(dsn.uri(application_name="k", options={})) == wanted
    assert conninfo_to_dict(dsn.conninfo(application_name="k", options={})) == wanted


@given(password=passwords, user=names, dbname=names)
def test_parsing_our_own_uri_gives_the_same_parts(password: str, user: str, dbname: str) -> None:
    dsn = make(password=password, user=user, dbname=dbname)
    again = Dsn.parse(dsn.uri(application_name="k", options={}), WHERE)
    assert (again.user, again.password, again.dbname) == (user, password, dbname)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_and_never_crashes(text: str) -> None:
    for uri in (text, f"postgresql://{text}", f"postgresql://ann:{text}@host/db"):
        try:
            Dsn.parse(uri, WHERE)
        except ConfigError as error:
            assert str(error).startswith(WHERE)  # noqa: PT017 - either outcome is right


def test_session_settings_are_escaped_and_follow_the_users_own() -> None:
    dsn = Dsn.parse("postgresql://ann@host/db?options=-c%20work_mem%3D64MB&connect_timeout=9", WHERE)
    settings = {"search_path": 'a, "b c"', "statement_timeout": "1000"}
    uri = dsn.uri(application_name="key haul", options=settings, connect_timeout_seconds=3)
    assert conninfo_to_dict(uri)["options"] == (
        '-c work_mem=64MB -c search_path=a,\\ "b\\ c" -c statement_timeout=1000'
    )
    assert "options=-c%20work_mem%3D64MB%20-c%20search_path%3Da%2C%5C%20%22b%5C%20c%22" in uri
    assert conninfo_to_dict(uri)["connect_timeout"] == "9"
    assert conninfo_to_dict(uri)["application_name"] == "key haul"


@given(password=names.filter(lambda text: "*" not in text), before=st.text(max_size=5), after=st.text(max_size=5))
def test_redact_removes_every_form_of_the_password(password: str, before: str, after: str) -> None:
    dsn = make(password=password)
    encoded = quote(password, safe="")
    for form in (
        password,
        encoded,
        encoded.lower() if password.isdigit() else "".join(f"%{byte:02x}" for byte in password.encode()),
        quote(password),
        quote_plus(password),
        base64.b64encode(password.encode()).decode(),
        base64.urlsafe_b64encode(password.encode()).decode(),
        base64.b64encode(f"ann:{password}".encode()).decode(),
        repr(password)[1:-1],
    ):
        cleaned = redact(f"{before}{form}{after}", dsn)
        assert form not in cleaned
        assert "***" in cleaned


def test_redact_takes_several_databases_and_leaves_other_text_alone(monkeypatch) -> None:
    monkeypatch.setattr(redaction, "_known", redaction._Known())  # Hypothesis has made passwords of any text above
    one, two = make(password="long secret"), make(password="secret")
    assert redact("a long secret, a secret, postgresql://x:long%20secret@h", one, two) == (
        "a ***, a ***, postgresql://x:***@h"
    )
    assert redact("nothing here", one, make(password="")) == "nothing here"


@pytest.mark.parametrize(
    "form",
    ["a b/ü'", "a+b%2F%C3%BC%27", "a%20b/%c3%bc'", "a b/\\u00fc'", "a b/\\xfc''", "YSBiL8O8Jw==", "YSBiL8O8Jw",
     "YW5uOmEgYi/DvCc=", "YW5uOmEgYi_DvCc"],
)  # fmt: skip
def test_redact_knows_each_way_of_writing_a_password(form: str) -> None:
    assert redact(f"<{form}>", make(password="a b/ü'")) == "<***>"
