"""Addresses of stores, connection strings and patterns."""

from __future__ import annotations

import re

import pytest

from keyhaul.config.filesource import table_name
from keyhaul.errors import ConfigError
from keyhaul.redaction import hide
from keyhaul.sources.files.remote.listing import as_expression
from keyhaul.sources.files.remote.stores import azure_options
from keyhaul.storeaddress import is_remote, take_apart, whole_path


def test_an_address_is_shown_and_kept_without_its_query_which_is_hidden_elsewhere():
    given = "HTTPS://host:8443/a%20b/c.csv?sv=1&token=Gx71Kopq93Lm#part"
    address = take_apart(given)
    assert (str(address), repr(address)) == ("https://host:8443/a b/c.csv",) * 2
    assert whole_path(given) == "https://host:8443/a b/c.csv"
    assert "Gx71Kopq93Lm" not in hide("error at token Gx71Kopq93Lm")
    assert table_name(given) == "c"


@pytest.mark.parametrize("path", ["a.csv", "/a/b.csv", "file:///a.csv", "C://x", "postgresql://host/db"])
def test_other_paths_are_not_of_a_store(path):
    assert not is_remote(path)


def test_a_connection_string_is_split_into_account_key_and_endpoint():
    text = "DefaultEndpointsProtocol=http;AccountName=one;AccountKey=QUJD==;BlobEndpoint=http://127.0.0.1:1/one/;"
    assert azure_options(text) == {"account_name": "one", "endpoint": "http://127.0.0.1:1/one", "account_key": "QUJD=="}
    cloud = azure_options("AccountName=one;AccountKey=QUJD;EndpointSuffix=core.chinacloudapi.cn")
    assert cloud["endpoint"] == "https://one.blob.core.chinacloudapi.cn"
    signed = azure_options(
        "BlobEndpoint=https://two.blob.core.windows.net/;SharedAccessSignature=?sv=1&sig=abcdefghi123"
    )
    assert (signed["account_name"], signed["sas_key"]) == ("two", "sv=1&sig=abcdefghi123")


@pytest.mark.parametrize("text", ["x", "AccountName=one", "AccountKey=verysecret99", "UseDevelopmentStorage=true"])
def test_what_is_no_connection_string_is_refused_without_a_word_of_it(text):
    with pytest.raises(ConfigError) as refused:
        azure_options(text)
    assert "verysecret99" not in str(refused.value)


MATCHING = [
    ("in/*.csv", "in/a.csv", True),
    ("in/*.csv", "in/sub/a.csv", False),
    ("in/*.csv", "in/.a.csv", False),
    ("in/**/*.csv", "in/a.csv", True),
    ("in/**/*.csv", "in/x/y/a.csv", True),
    ("in/**", "in/x/y/a.csv", True),
    ("in/a?.csv", "in/ab.csv", True),
    ("in/a?.csv", "in/a/.csv", False),
    ("in/[ab].csv", "in/b.csv", True),
    ("in/[!ab].csv", "in/b.csv", False),
    ("in/a+b.csv", "in/a+b.csv", True),
    ("in/a.csv", "in/axcsv", False),
]


@pytest.mark.parametrize(("pattern", "path", "matches"), MATCHING)
def test_a_pattern_means_what_it_means_for_folders(pattern, path, matches):
    assert bool(re.fullmatch(as_expression(pattern), path)) is matches
