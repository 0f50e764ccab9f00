"""What opens a store: where it is and with which key, from the environment; obstore's own settings for the rest."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from keyhaul import redaction
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from keyhaul.storeaddress import StoreAddress

CONNECTION_STRING: Final = "AZURE_STORAGE_CONNECTION_STRING"
_EMULATOR: Final = "UseDevelopmentStorage"

_CLIENT: Final[dict[str, Any]] = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "10m"}
"""A store may be silent for 30 s, and take ten minutes for one answer; what waits for it can be cancelled."""

_RETRIES: Final[dict[str, Any]] = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}


def open_store(address: StoreAddress) -> Any:  # noqa: ANN401 - a store of obstore
    """Return the store of an address; nothing is connected yet.

    Raises:
        ConfigError: obstore is not installed, or the environment says no account or no well-formed key.
    """
    stores = _needed(address)
    if not address.place or "@" in address.place:
        expected = "https://host/path" if address.is_web else f"{address.scheme}://NAME/path"
        got = "a login in the address" if "@" in address.place else "an address without a name"
        raise ConfigError(f"read a remote file: {got}, expected {expected}. Correct the path")
    try:
        if address.scheme == "az":
            return _azure(address, stores)
        if address.scheme == "s3":
            plain = (os.environ.get("AWS_ENDPOINT_URL") or "").startswith("http://")
            return stores.S3Store(address.place, client_options=_client(plain=plain), retry_config=_RETRIES)
        query = f"?{address.query}" if address.query else ""
        url = f"{address.scheme}://{quote(address.place, safe='.:-[]')}/{query}"
        return stores.HTTPStore.from_url(
            url, client_options=_client(plain=address.scheme == "http"), retry_config=_RETRIES
        )
    except (store_errors(), ValueError) as error:  # its text may hold the key
        raise ConfigError(f"read {address}: {_why(address, str(error))}") from None


def store_errors() -> type[Exception]:
    """Return what each error of obstore is."""
    from obstore.exceptions import BaseError

    return BaseError


def place_name(address: StoreAddress) -> str:
    """Return what people call the place of an address."""
    return {"az": "container", "s3": "bucket"}.get(address.scheme, "server")


def key_hint(address: StoreAddress) -> str:
    """Return what to look at when a store refuses."""
    if address.scheme == "az":
        return f"Check {CONNECTION_STRING}, or AZURE_STORAGE_ACCOUNT_NAME and the key or identity beside it"
    if address.scheme == "s3":
        return "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL"
    return "Check the address, and whether its signature has run out"


def _needed(address: StoreAddress) -> Any:  # noqa: ANN401 - a module
    try:
        return import_module("obstore.store")
    except ModuleNotFoundError:
        raise ConfigError(
            f"read {address}: the package obstore is not installed, expected it for a remote file. "
            "Install it: pip install 'keyhaul[cloud]'"
        ) from None


def _client(*, plain: bool) -> dict[str, Any]:
    return {**_CLIENT, "allow_http": plain}


def _azure(address: StoreAddress, stores: Any) -> Any:  # noqa: ANN401 - obstore's module and its store
    text = os.environ.get(CONNECTION_STRING, "").strip()
    if not text:
        plain = (os.environ.get("AZURE_STORAGE_ENDPOINT") or "").startswith("http://")
        return stores.AzureStore(address.place, client_options=_client(plain=plain), retry_config=_RETRIES)
    options = azure_options(text)
    plain = options.get("endpoint", "").startswith("http://")
    return stores.AzureStore(address.place, client_options=_client(plain=plain), retry_config=_RETRIES, **options)


def azure_options(text: str) -> dict[str, str]:
    """Return account, key and endpoint that a connection string of Azure says.

    Raises:
        ConfigError: it is none; nothing of it is told.
    """
    parts = {}
    for piece in text.split(";"):
        name, equals, value = piece.strip().partition("=")
        if equals:
            parts[name.lower()] = value
    if parts.get(_EMULATOR.lower(), "").lower() == "true":
        raise ConfigError(
            f"read {CONNECTION_STRING}: {_EMULATOR}, expected account, key and BlobEndpoint. Write them out"
        )
    account, key, signature = (parts.get(name, "") for name in ("accountname", "accountkey", "sharedaccesssignature"))
    endpoint = parts.get("blobendpoint", "").rstrip("/")
    if not account and endpoint:  # a signature's string has the endpoint alone
        account = endpoint.partition("://")[2].partition(".")[0]
    if not account or not (key or signature):
        raise ConfigError(
            f"read {CONNECTION_STRING}: no AccountName with an AccountKey or a SharedAccessSignature, expected the "
            "string that the portal shows under access keys"
        )
    redaction.remember(key)
    redaction.remember(signature)
    if not endpoint:
        protocol = parts.get("defaultendpointsprotocol", "https")
        endpoint = f"{protocol}://{account}.blob.{parts.get('endpointsuffix', 'core.windows.net')}"
    secret = {"account_key": key} if key else {"sas_key": signature.removeprefix("?")}
    return {"account_name": account, "endpoint": endpoint, **secret}


def _why(address: StoreAddress, text: str) -> str:
    if "Account must be specified" in text:
        return f"no storage account, expected one. Set {CONNECTION_STRING}, or AZURE_STORAGE_ACCOUNT_NAME"
    if "Access Key" in text or "AccessKey" in text:
        return f"the account's key is cut off or no key, expected one in base64. {key_hint(address)}"
    return f"its settings do not open a store, expected an address and a key. {key_hint(address)}"
