"""What metadata a document may have, and what is refused."""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

import pytest

from tritonrag.errors import InvalidRequest
from tritonrag.index.manifest import DocumentRecord
from tritonrag.metadata import Metadata, said_outside


def test_front_matter_becomes_metadata() -> None:
    found = Metadata.read(
        {
            "title": "Leave",
            "tags": ["hr", "hr", 2026],
            "access": "staff",
            "created": date(2026, 3, 31),
            "modified": "2026-04-01T09:30:00+02:00",
            "version": 3,
            "draft": False,
            "review_on": datetime(2027, 1, 1, 8),
        }
    )
    assert found == Metadata(
        tags=("2026", "hr"),
        access=("staff",),
        created="2026-03-31",
        modified="2026-04-01T07:30:00+00:00",
        fields={"draft": False, "review_on": "2027-01-01T08:00:00+00:00", "version": 3},
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tags": {"a": 1}}, "`tags` is {'a': 1}, expected a text or a list"),
        ({"access": ["", "x"]}, "`access` holds ''; a value has 1 to 256 characters"),
        ({"access": [None]}, "`access` holds None, expected texts"),
        ({"created": "last week"}, "`created` is 'last week', expected a date such as"),
        ({"modified": 5}, "`modified` is 5, expected a date"),
        ({"Review On": 1}, "'Review On' is not a field's name"),
        ({7: 1}, "7 is not a field's name"),
        ({"score": float("nan")}, "`score` is nan, expected a text"),
        ({"nested": [1]}, r"`nested` is \[1\], expected a text"),
        ({f"f{n}": n for n in range(65)}, "65 fields, at most 64"),
        ({"tags": [str(n) for n in range(257)]}, "`tags` has 257 values, at most 256"),
    ],
)
def test_what_is_not_metadata_is_named(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Metadata.read(values)


def test_a_record_keeps_its_metadata() -> None:
    metadata = Metadata(tags=("a",), access=("g",), fields={"n": 1.5})
    record = DocumentRecord("a.md", "A", "00", "recipe", 2, metadata)
    assert DocumentRecord.from_json(record.to_json().decode()) == record


def test_a_record_of_an_older_format_has_none() -> None:
    line = {"source": "a.md", "title": "A", "sha256": "00", "recipe": "r", "passages": 2}
    assert DocumentRecord.from_json(json.dumps(line)).metadata == Metadata()


def test_a_front_matter_may_hold_what_is_for_other_programs() -> None:
    own = {"nav": {"order": 1}, "Review On": 1, "created": "soon", "version": 2, 7: 1, "n": 1 << 99}
    assert Metadata.joined(own, {}) == Metadata(fields={"version": 2})
    many = {f"f{number}": number for number in range(80)}
    assert len(Metadata.joined(many, {"level": 1}).fields) == 64


def test_what_is_said_outside_goes_before() -> None:
    own = {"tags": "a", "access": "hr", "created": "2026-01-01", "level": 1, "title": "Own"}
    outside = {"tags": ["b"], "access": [], "level": 2}
    assert Metadata.joined(own, outside) == Metadata(("a", "b"), (), "2026-01-01", "", {"level": 2})


@pytest.mark.parametrize(
    "own",
    [
        {"access": None}, {"access": {"a": 1}}, {"access": [1.5]}, {"Access": "hr"},
        {"ac\u200bcess": "hr"}, {"\ufeffaccess": "hr"}, {"ａｃｃｅｓｓ": "hr"}, {b"access": "hr"},
        {"a": [("access", "hr")]}, {"a": {b"Access": "hr"}}, {"acce\u017fs": "hr"},
    ],
)  # fmt: skip
def test_access_is_understood_or_refused(own: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="access"):
        Metadata.joined(own, {})


def test_what_is_said_outside_is_json() -> None:
    values = {"tags": "x", "access": [], "modified": date(2026, 3, 31), "on": date(2026, 4, 1)}
    said = said_outside({**values, "title": " A  title "})
    assert json.loads(json.dumps(said)) == {
        "tags": ["x"], "access": [], "modified": "2026-03-31", "on": "2026-04-01",
        "title": "A title",
    }  # fmt: skip
