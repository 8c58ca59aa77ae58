from __future__ import annotations

import json
from typing import Any

import pytest
from access_samples import opened, record

from tritonrag.contract import (
    MAX_FILTER_BYTES,
    MAX_FILTER_CONDITIONS,
    MAX_FILTER_DEPTH,
    MAX_FILTER_VALUES,
)
from tritonrag.errors import InvalidRequest
from tritonrag.index import parse_filter
from tritonrag.index.snapshot import Snapshot

DOCUMENTS = [
    record("hr/leave.md", title="Leave", tags=["hr", "leave"], created="2026-03-31",
           pages=3, owner="Ä. Nobody", final=True),
    record("hr/pay.md", title="Pay", tags="hr", created="2026-03-31T10:00:00+02:00",
           modified="2026-05-01", pages=12),
    record("hr/notes.md", title="Notes", created="2025-12-31T23:59:59Z", pages=2.5, final=False),
    record("it/vpn.md", title="VPN", tags=["it", "leave/early"], owner="Zoë", pages=12),
    record("readme.md", title="Read me", version="12"),
]  # fmt: skip


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return opened(tmp_path_factory.mktemp("index"), DOCUMENTS)


def left(snapshot: Snapshot, where: Any) -> str:
    """Return the first letters of the titles of the documents that a filter leaves."""
    parsed = parse_filter(json.dumps(where))
    snapshot.check(parsed)
    allowed = snapshot.allowed(parsed)
    return "".join(
        each.title[0]
        for number, each in enumerate(DOCUMENTS)
        if allowed is None or allowed.mask[snapshot.passages_of(number)].all()
    )


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"source": "hr/pay.md"}, "P"),
        ({"source": ["hr/pay.md", "readme.md", "none.md"]}, "PR"),
        ({"source": {"$prefix": "hr/"}}, "LPN"),
        ({"source": {"$prefix": ""}}, "LPNVR"),
        ({"source": {"$prefix": "hr0"}}, ""),
        ({"source": {"$gt": "hr/pay.md"}}, "VR"),
        ({"source": {"$gte": "hr/notes.md", "$lt": "it/vpn.md"}}, "PN"),
        ({"tags": "hr"}, "LP"),
        ({"tags": {"$ne": "hr"}}, "NVR"),
        ({"tags": ["it", "leave"]}, "LV"),
        ({"tags": {"$nin": ["it", "leave"]}}, "PNR"),
        ({"tags": {"$prefix": "leave"}}, "LV"),
        ({"$and": [{"tags": "hr"}, {"tags": "leave"}]}, "L"),
        ({"created": "2026-03-31"}, "LP"),
        ({"created": "2026-03-31T08:00:00Z"}, "P"),
        ({"created": {"$gt": "2026-03-31"}}, ""),
        ({"created": {"$gt": "2026-03-31T07:59:59Z"}}, "P"),
        ({"created": {"$gte": "2026-03-31"}}, "LP"),
        ({"created": {"$lte": "2026-03-31"}}, "LPN"),
        ({"created": {"$lt": "2026-03-31"}}, "N"),
        ({"modified": {"$gte": "2026-01-01"}}, "P"),
        ({"pages": 12}, "PV"),
        ({"pages": 12.0}, "PV"),
        ({"pages": {"$gt": 2.5, "$lte": 12}}, "LPV"),
        ({"pages": {"$lt": 3}}, "N"),
        ({"pages": {"$ne": 12}}, "LNR"),
        ({"version": "12"}, "R"),
        ({"final": True}, "L"),
        ({"final": {"$ne": True}}, "PNVR"),
        ({"final": [True, False]}, "LN"),
        ({"owner": {"$gte": "Z"}}, "LV"),
        ({"source": {"$prefix": "hr/"}, "pages": 12}, "P"),
        ({"$or": [{"title": "VPN"}, {"tags": "hr", "pages": {"$lt": 5}}]}, "LV"),
        ({"$not": {"tags": "hr"}}, "NVR"),
        ({"$not": {"$or": [{"tags": "hr"}, {"$not": {"pages": 12}}]}}, "V"),
        ({"$and": [{"$or": [{"title": "Pay"}, {"title": "VPN"}]}], "tags": "hr"}, "P"),
        ({"source": "none.md"}, ""),
        ({}, "LPNVR"),
    ],
)
def test_a_filter_leaves_what_it_says(snapshot: Snapshot, where: Any, expected: str) -> None:
    assert left(snapshot, where) == expected


@pytest.mark.parametrize("text", ["", "  \n", "{}"])
def test_no_condition(text: str) -> None:
    assert parse_filter(text) is None


def test_filters_that_mean_the_same_are_equal() -> None:
    ours = parse_filter('{"source": ["b", "a", "b"], "tags": {"$in": ["x"]}}')
    theirs = parse_filter('{"$and": [{"tags": "x"}, {"source": {"$in": ["a", "b"]}}]}')
    assert ours == theirs
    assert hash(ours) == hash(theirs)
    assert parse_filter('{"final": true}') != parse_filter('{"final": 1}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "filter: not JSON"),
        ("[" * 9000, "filter: not JSON"),
        ('["source"]', "expected a JSON object"),
        ('{"Author": "x"}', "unknown field 'Author'; the fields are `source`, `title`, `tags`"),
        ('{"access": "x"}', "unknown field 'access'"),
        ('{"path": "x"}', "unknown field 'path'"),
        ('{"source": 3}', "`source` is compared with 3, expected a text"),
        ('{"source": ["a", null]}', "`source` is compared with null, expected a text"),
        ('{"title": []}', "`title` $in takes a list of 1 to 256 values"),
        ('{"title": {"$in": "a"}}', "`title` $in takes a list"),
        ('{"title": {"$like": "a"}}', "unknown operator '$like'; the operators are `$eq`, `$ne`"),
        ('{"title": {}}', "`title` has no operator"),
        ('{"title": {"$eq": ["a"]}}', '`title` is compared with ["a"]'),
        ('{"created": "yesterday"}', 'with "yesterday", expected a date such as 2026-03-31'),
        ('{"created": {"$gt": 2026}}', "`created` is compared with 2026, expected a date"),
        ('{"created": {"$prefix": "2026"}}', "`created` $prefix does not go with a date"),
        ('{"pages": {"$gt": true}}', "`pages` $gt does not go with true or false"),
        ('{"pages": {"$prefix": 1}}', "`pages` $prefix does not go with a number"),
        ('{"pages": [1, "2"]}', '`pages` is compared with "2", expected texts, numbers, or'),
        ('{"pages": NaN}', "`pages` is compared with NaN"),
        ('{"pages": {"$gt": 1e999}}', "`pages` is compared with Infinity"),
        ('{"pages": {"$eq": "\\ud800", "$gt": null}}', "compared with null"),
        ('{"created": "\\ud800"}', "expected a date"),
        ('{"$nor": []}', "unknown operator '$nor'; here may be `$and`, `$or`, `$not`"),
        ('{"$and": {"title": "a"}}', "`$and` takes a list of conditions"),
        ('{"$or": []}', "`$or` takes a list of conditions"),
        ('{"$or": [3]}', "expected an object"),
        ('{"$not": {}}', "expected an object"),
        ('{"title": "a", "title": "b"}', "'title' is there twice in one object; use $and"),
        (json.dumps({"source": ["x"] * (MAX_FILTER_VALUES + 1)}), "1 to 256 values"),
        (json.dumps({"source": "x" * MAX_FILTER_BYTES}), "over 16384 bytes"),
        ('{"$not": ' * MAX_FILTER_DEPTH + '{"title": "a"}' + "}" * MAX_FILTER_DEPTH, "deeper than"),
        (
            json.dumps({"$or": [{"title": str(n)} for n in range(MAX_FILTER_CONDITIONS + 1)]}),
            "65 conditions, at most 64",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_filter(text)
    assert message in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"colour": "red"}',
            "unknown field 'colour'; the fields are `source`, `title`, `tags`, `created`, "
            "`modified`, `final`, `owner`, `pages`, `version`",
        ),
        ('{"$not": {"colour": "red"}}', "unknown field 'colour'"),
        ('{"pages": "12"}', "`pages` is compared with a text, expected a number"),
        ('{"version": {"$gt": 1}}', "`version` is compared with a number, expected a text"),
    ],
)
def test_fields_of_ones_own_are_checked_against_the_documents(
    snapshot: Snapshot, text: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        snapshot.check(parse_filter(text))
    assert message in str(caught.value)
