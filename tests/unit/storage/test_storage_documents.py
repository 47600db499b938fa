"""Formats: what is older is migrated, what is newer is refused with the way out."""

import math

import pytest

from sundog.errors import Corrupt, FormatTooNew, SundogError
from sundog.storage.documents import decode, encode, number, require_name
from sundog.storage.models import Registry
from sundog.storage.root import open_root


def test_what_is_encoded_decodes_with_its_format():
    document = {"name": "digits", "metrics": {"loss": 0.5}, "steps": [1, 2]}
    assert decode(encode(document), "k") == {**document, "format": 1}


def test_a_metric_that_is_no_number_survives():
    document = decode(encode({"m": {"loss": math.nan, "best": -math.inf}}), "k")
    assert math.isnan(number(document["m"]["loss"]))
    assert number(document["m"]["best"]) == -math.inf


def test_an_older_format_is_migrated_step_by_step():
    migrations = {
        1: lambda d: {**{k: v for k, v in d.items() if k != "title"}, "name": d["title"]},
        2: lambda d: {**d, "name": d["name"].lower()},
    }
    old = b'{"format": 1, "title": "Digits"}'
    assert decode(old, "k", newest=3, migrations=migrations) == {"format": 3, "name": "digits"}


def test_a_newer_format_is_refused_with_the_fix():
    with pytest.raises(FormatTooNew, match="format 2") as raised:
        decode(b'{"format": 2}', "models/digits/1/model.json")
    assert "pip install --upgrade sundog" in raised.value.fix


def test_a_registry_written_by_a_later_sundog_is_refused(tmp_path):
    root = open_root(str(tmp_path))
    root.write("models/digits/1/model.json", b'{"format": 99}')
    with pytest.raises(FormatTooNew):
        Registry(root).get("digits@1")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"name": 1}', b'{"format": "1"}'])
def test_what_is_no_document_is_corrupt(data):
    with pytest.raises(Corrupt):
        decode(data, "k")


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "a--b", "-a", "a" * 64, "a b", "ä"])
def test_names_that_would_not_fit_a_key_or_a_url_are_refused(name):
    with pytest.raises(SundogError):
        require_name(name, "model")
