"""Constants in quotes, read as the input functions of PostgreSQL's types read them in our sessions.

Only forms whose meaning hangs on no setting and no clock are read; what to write instead is in each message.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_TIME: Final = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d)(?:\.(\d{1,6}))?)?")
_ZONE: Final = re.compile(r"(?:\s*([+-])(\d{1,2})(?::?([0-5]\d)(?::?([0-5]\d))?)?|\s*([zZ]))?")
_DATE: Final = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")
_NUMBER: Final = re.compile(r"\s*([+-]?)(\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?\s*")
_UUID: Final = re.compile(r"\{?((?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4})\}?")
_MAC: Final = re.compile(r"(?:[0-9a-fA-F]{2}([:-]?)(?:[0-9a-fA-F]{2}\1)*[0-9a-fA-F]{2})")
_PART: Final = re.compile(r"\s*([+-]?)(?:(\d+):([0-5]\d)(?::([0-5]\d)(?:\.(\d{1,6}))?)?|(\d+(?:\.\d+)?)\s*([a-zA-Z]+))")
_LSN: Final = re.compile(r"([0-9a-fA-F]{1,8})/([0-9a-fA-F]{1,8})")
_LONGEST: Final = 10
_LAST_HOUR: Final = 24
_EXPONENT: Final = 1000
"""The most decimals that a numeric shows: NUMERIC_MAX_DISPLAY_SCALE in numeric.h."""

_DAY: Final = 24 * 3_600_000_000
_UNITS: Final = {
    **dict.fromkeys(("y", "yr", "yrs", "year", "years"), 360 * _DAY),
    **dict.fromkeys(("mon", "mons", "month", "months"), 30 * _DAY),
    **dict.fromkeys(("w", "week", "weeks"), 7 * _DAY),
    **dict.fromkeys(("d", "day", "days"), _DAY),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3_600_000_000),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60_000_000),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1_000_000),
    **dict.fromkeys(("ms", "msec", "msecs", "millisecond", "milliseconds"), 1_000),
    **dict.fromkeys(("us", "usec", "usecs", "microsecond", "microseconds"), 1),
}
"""In microseconds, as intervals compare."""


def _expected(what: str) -> ValueError:
    return ValueError(f"expected {what}")


def read_time(text: str) -> str:
    """Return a time as PostgreSQL prints it."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise _expected("a time such as '09:00' or '23:59:59.5'")
    hour, minute, second, fraction = (found[n] or "0" for n in range(1, 5))
    late = int(hour) > _LAST_HOUR or (int(hour) == _LAST_HOUR and any(int(p) for p in (minute, second, fraction)))
    if late:
        raise _expected("a time up to '24:00'")
    digits = fraction.rstrip("0")
    return f"{int(hour):02}:{minute:0>2}:{second:0>2}" + (f".{digits}" if digits else "")


def _read_timetz(text: str) -> str:
    head = re.match(r"[\d:.]+", text.strip())
    zone = _ZONE.fullmatch(text.strip()[head.end() :]) if head else None
    if head is None or zone is None:
        raise _expected("a time with its zone, such as '09:00+02'")
    sign, hours, minutes, seconds = zone[1] or "+", zone[2] or "0", zone[3] or "00", zone[4] or "00"
    return f"{read_time(head[0])}{sign}{int(hours):02}:{minutes}:{seconds}"


def _read_interval(text: str) -> str:
    """Return an interval of this length, in hours: no other part is looked at by a comparison."""
    lowered = text.strip().lower()
    if lowered in {"infinity", "-infinity"}:
        return lowered
    if lowered.lstrip("+-").isdigit() and len(lowered) < _LONGEST:
        lowered += " s"  # a number without a unit is one of seconds
    place, total = 0, Decimal(0)
    wrong = _expected("an interval such as '1 day 02:30:00', '90 minutes' or '-1 mon'")
    while place < len(lowered):
        found = _PART.match(lowered, place)
        if found is None or found.end() == place:
            raise wrong
        amount = Decimal(0)
        if found[2] is not None:
            fraction = (found[5] or "").ljust(6, "0")
            amount = Decimal(
                int(found[2]) * 3_600_000_000 + int(found[3]) * 60_000_000 + int(found[4] or 0) * 1_000_000
                + int(fraction)
            )  # fmt: skip
        elif found[7] in _UNITS and (found[6].isdigit() or _UNITS[found[7]] <= _UNITS["h"]):
            amount = Decimal(found[6]) * _UNITS[found[7]]
        else:
            raise wrong
        total += -amount if found[1] == "-" else amount
        place = found.end()
    if not lowered or total != int(total):
        raise wrong
    hours, rest = divmod(abs(int(total)), 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    seconds, micros = divmod(rest, 1_000_000)
    return f"{'-' if total < 0 else ''}{hours:02}:{minutes:02}:{seconds:02}.{micros:06}"


def _read_uuid(text: str) -> str:
    found = _UUID.fullmatch(text)
    if found is None:
        raise _expected("a uuid")
    digits = found[1].replace("-", "").lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _read_mac(width: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        digits = re.sub("[:-]", "", text.strip()).lower()
        if _MAC.fullmatch(text.strip()) is None or len(digits) != 2 * width:
            raise _expected(f"{width} bytes such as '{':'.join(['08'] * width)}'")
        return ":".join(digits[n : n + 2] for n in range(0, len(digits), 2))

    return read


def _read_inet(text: str) -> str:
    try:
        return str(ipaddress.ip_interface(text.strip()))
    except ValueError:
        raise _expected("an address such as '10.0.0.9' or '10.0.0.0/8'") from None


def _read_cidr(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip()))
    except ValueError:
        raise _expected("a network such as '10.0.0.0/8'") from None


def _read_bits(text: str) -> str:
    if re.fullmatch("[01]*", text) is None:
        raise _expected("zeros and ones")
    return text


def _read_oid(text: str) -> str:
    if re.fullmatch(r"\d{1,10}", text.strip()) is None or int(text) >= 2**32:
        raise _expected("a whole number up to 4294967295")
    return str(int(text))


def _read_lsn(text: str) -> str:
    found = _LSN.fullmatch(text)
    if found is None:
        raise _expected("a position such as '16/B374D848'")
    return f"{found[1].upper()}/{found[2].upper()}"


def read_numeric(text: str) -> str:
    """Return a number as numeric prints it, every digit of it."""
    special = {"nan": "NaN", "infinity": "Infinity", "inf": "Infinity"}
    lowered = text.strip().lower()
    if lowered == "nan" or lowered.lstrip("+-") in {"infinity", "inf"}:
        found = special[lowered.lstrip("+-")]
        return f"-{found}" if lowered.startswith("-") else found
    number = _NUMBER.fullmatch(text)
    if number is None or abs(int(number[3] or 0)) > _EXPONENT:
        raise _expected("a number")
    value = Decimal(text.strip())
    return format(value or abs(value), "f")


def _read_bpchar(text: str) -> str:
    return text.rstrip(" ")


READ: Final[dict[str, Callable[[str], str]]] = {
    "numeric": read_numeric,
    "time": read_time,
    "timetz": _read_timetz,
    "interval": _read_interval,
    "uuid": _read_uuid,
    "macaddr": _read_mac(6),
    "macaddr8": _read_mac(8),
    "inet": _read_inet,
    "cidr": _read_cidr,
    "bit": _read_bits,
    "varbit": _read_bits,
    "oid": _read_oid,
    "pg_lsn": _read_lsn,
    "bpchar": _read_bpchar,
}
"""Kind → text of a constant → its text as PostgreSQL prints it; raises ValueError."""

MOMENTS: Final = {"infinity": 1, "-infinity": -1}


def read_moment(text: str, *, zoned: bool) -> dt.datetime | int:
    """Return a timestamp, naive or in UTC; 1 or -1 for ±infinity. Without a zone it is UTC, as in our sessions."""
    stripped = text.strip()
    if stripped.lower() in MOMENTS:
        return MOMENTS[stripped.lower()]
    wrong = _expected("a moment such as '2020-01-31 18:00:00'" + ("" if not zoned else " or '2020-01-31 18:00:00+01'"))
    date = _DATE.match(stripped)
    if date is None:
        raise wrong
    rest = stripped[date.end() :].lstrip(" T")
    clock = re.match(r"[\d:.]+", rest)
    zone = _ZONE.fullmatch(rest[clock.end() :] if clock else rest)
    found = _TIME.fullmatch(clock[0]) if clock else None
    if zone is None or (clock and not found) or (zone[0] and not (zoned and clock)):
        raise wrong
    try:
        day = dt.datetime(int(date[1]), int(date[2]), int(date[3]), tzinfo=dt.UTC)
        if found is not None:
            read_time(clock[0] if clock else "")
            micros = int((found[4] or "").ljust(6, "0"))
            day += dt.timedelta(
                hours=int(found[1]), minutes=int(found[2]), seconds=int(found[3] or 0), microseconds=micros
            )
        if zone[1]:
            east = dt.timedelta(hours=int(zone[2]), minutes=int(zone[3] or 0), seconds=int(zone[4] or 0))
            day += east if zone[1] == "-" else -east
    except (ValueError, OverflowError):
        raise wrong from None
    return day if zoned else day.replace(tzinfo=None)


def read_date(text: str) -> dt.date | int:
    """Return a date; 1 or -1 for ±infinity."""
    stripped = text.strip()
    if stripped.lower() in MOMENTS:
        return MOMENTS[stripped.lower()]
    found = _DATE.fullmatch(stripped)
    try:
        if found is not None:
            return dt.date(int(found[1]), int(found[2]), int(found[3]))
    except ValueError:
        pass
    raise _expected("a date such as '2020-01-31'")


_TRUTH: Final = {
    **dict.fromkeys(("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"), True),
    **dict.fromkeys(("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"), False),
}


def read_boolean(text: str) -> bool:
    """Return a truth value: parse_bool_with_len in bool.c."""
    if text.strip().lower() not in _TRUTH:
        raise _expected("'true' or 'false'")
    return _TRUTH[text.strip().lower()]


def read_bytes(text: str) -> bytes:
    """Return bytes, written in hexadecimal."""
    if re.fullmatch(r"\\x(?:[0-9a-fA-F]{2})*", text) is None:
        raise _expected(r"bytes such as '\x00ff'")
    return bytes.fromhex(text[2:])


def read_integer(text: str) -> int:
    """Return a whole number."""
    if re.fullmatch(r"\s*[+-]?\d{1,19}\s*", text) is None:
        raise _expected("a whole number")
    return int(text)


def read_float(text: str) -> float:
    """Return a floating-point number."""
    lowered = text.strip().lower()
    if _NUMBER.fullmatch(text) is None and lowered.lstrip("+-") not in {"nan", "inf", "infinity"}:
        raise _expected("a number")
    return float(lowered)
