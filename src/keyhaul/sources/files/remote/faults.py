"""What a store's error means, in words of our own: its text may hold a signature, and is never shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from keyhaul.errors import ConfigError, ConnectError, EtlError, StopRunError, TransientError
from keyhaul.sources.files.remote.stores import key_hint, place_name

if TYPE_CHECKING:
    from keyhaul.storeaddress import StoreAddress

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>")
_REFUSED: Final = frozenset({"401", "403"})
_NO_PLACE: Final = frozenset({"ContainerNotFound", "NoSuchBucket", "ContainerBeingDeleted"})


def word(error: BaseException) -> str:
    """Return the status and the code of a store's answer, as ``403 AuthorizationFailure``; empty without an answer."""
    text = str(error)
    found = [match[1] for match in (_STATUS.search(text), _CODE.search(text)) if match is not None]
    return " ".join(found)


def is_missing(error: BaseException) -> bool:
    """Whether there is no object of this name; also no container, when a store does not tell it apart."""
    return isinstance(error, FileNotFoundError) or type(error).__name__ == "NotFoundError"


def when_opening(address: StoreAddress, error: Exception) -> EtlError:
    """Return the error of a store that is asked what it has, before a run."""
    said = word(error)
    if said.split(" ")[-1] in _NO_PLACE:
        name = place_name(address)
        return ConfigError(
            f"read {address}: there is no {name} {address.place}, expected one. Correct the path. {key_hint(address)}"
        )
    if said[:3] in _REFUSED or _is_refusal(error):
        return ConfigError(
            f"read {address}: the store refuses it ({said or 'no right'}), expected a key that may list and read. "
            f"{key_hint(address)}"
        )
    if is_missing(error):
        return ConfigError(f"read {address}: there is no such object, expected one. Correct the path")
    if "169.254.169.254" in str(error) or "redentials" in str(error):
        return ConfigError(f"read {address}: no key for the store, expected one. {key_hint(address)}")
    if said:
        return ConnectError(
            f"read {address}: the store answers {said}, also after some tries, expected its files. Try again later"
        )
    return ConnectError(
        f"read {address}: the store does not answer, expected it within seconds. Check the network, the host and the "
        "endpoint"
    )


def when_reading(address: StoreAddress, error: Exception) -> EtlError:
    """Return the error of a read in the middle of a run, but for a changed object's."""
    said = word(error)
    if is_missing(error):
        return StopRunError(
            f"read {address}: the object is not there any more, expected the one of the run's begin. "
            "Start anew with --fresh when there is another"
        )
    if said[:3] in _REFUSED or _is_refusal(error):
        return StopRunError(
            f"read {address}: the store refuses it ({said or 'no right'}), expected the right to read as before. "
            f"{key_hint(address)}, and run the same command"
        )
    if type(error).__name__ == "NotSupportedError" or "range" in str(error).lower().partition("debug source")[0]:
        return StopRunError(
            f"read {address}: the server gives no parts of a file (HTTP ranges), expected it to. "
            "Download the file, and give its path"
        )
    return TransientError(f"read {address}: the store gave no answer{f' but {said}' if said else ''}, expected bytes")


def _is_refusal(error: Exception) -> bool:
    return type(error).__name__ in {"PermissionDeniedError", "UnauthenticatedError"}
