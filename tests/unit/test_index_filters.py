from __future__ import annotations

import json

import pytest

from tritonrag.errors import InvalidRequest
from tritonrag.index import parse_filter
from tritonrag.index.filters import MAX_FILTER_BYTES, MAX_VALUES


def test_values_and_lists() -> None:
    text = '{"source": ["b.md", "a.md", "b.md"], "title": "T"}'
    assert parse_filter(text) == {"source": ("a.md", "b.md"), "title": ("T",)}


@pytest.mark.parametrize("text", ["", "  \n", "{}"])
def test_no_condition(text: str) -> None:
    assert parse_filter(text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "filter: not JSON"),
        ("[" * 9000, "filter: not JSON"),
        ('["source"]', "expected a JSON object"),
        ('{"author": "x"}', "unknown field 'author'; the fields are `source` and `title`"),
        ('{"source": 3}', "`source` takes a string or a list of strings"),
        ('{"title": []}', "`title` takes a string or a list of strings"),
        ('{"title": ["a", null]}', "`title` takes a string or a list of strings"),
        (json.dumps({"source": ["x"] * (MAX_VALUES + 1)}), "at most 256 values"),
        (json.dumps({"source": "x" * MAX_FILTER_BYTES}), "over 16384 bytes"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_filter(text)
    assert message in str(caught.value)
