"""The ``filter`` of a search: conditions on the documents whose passages may be found.

The language is MongoDB's, as vector stores have taken it over: fields to values, ``$in``, ``$gt``,
``$and``, ``$not`` and so on. This module reads it into an immutable tree; ``columns`` evaluates it.
Pure: knows neither Triton nor FAISS.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from tritonrag.contract import (
    MAX_FILTER_BYTES,
    MAX_FILTER_CONDITIONS,
    MAX_FILTER_DEPTH,
    MAX_FILTER_VALUES,
)
from tritonrag.errors import InvalidRequest

Kind = Literal["text", "number", "boolean", "moment"]
"""What a field holds: values of different kinds are never equal and have no order."""

KINDS: dict[Kind, str] = {
    "text": "a text",
    "number": "a number",
    "boolean": "true or false",
    "moment": "a date such as 2026-03-31 or a time such as 2026-03-31T12:00:00Z",
}

FIELDS: dict[str, Kind] = {
    "source": "text",
    "title": "text",
    "tags": "text",
    "created": "moment",
    "modified": "moment",
}
"""Fields that every document may have; besides them it may have fields of its own."""

RESERVED = frozenset({"access", "path"})
"""Names that no field of a filter has. Who may read a document is not for a filter to ask."""

OPERATORS = (
    "$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte", "$prefix",
)  # fmt: skip
CONNECTIVES = ("$and", "$or", "$not")

_RANGES = ("$gt", "$gte", "$lt", "$lte")
_NEGATED = {"$ne": "$in", "$nin": "$in"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

Span = tuple[Any, Any]
"""The first and the last value that a written value stands for: a date is all of its day."""


@dataclass(frozen=True)
class Condition:
    """One field's values lie within one of ``spans``.

    ``operator`` is ``$in``, ``$prefix`` or one of the four of an order, which have one span.
    """

    field: str
    operator: str
    kind: Kind
    spans: frozenset[Span]


@dataclass(frozen=True)
class All:
    """Every one of ``parts`` holds."""

    parts: frozenset[Filter]


@dataclass(frozen=True)
class AnyOf:
    """At least one of ``parts`` holds."""

    parts: frozenset[Filter]


@dataclass(frozen=True)
class Not:
    """``part`` does not hold; true where the field is missing."""

    part: Filter


Filter = Condition | All | AnyOf | Not
"""A condition on documents. Filters that mean the same by another order of writing are equal."""


def parse_filter(text: str) -> Filter | None:
    """Return the filter in ``text``, or None where it sets no condition: blank, or ``{}``.

    Raises:
        InvalidRequest: it is too long, too deep, not JSON, or has an unknown field, operator or
            type; the message names the field and what is allowed.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_FILTER_BYTES:
        raise _invalid(f"over {MAX_FILTER_BYTES} bytes; ask for fewer values")
    if not text.strip():
        return None
    written = _json(text)
    if not isinstance(written, dict):
        raise _invalid('expected a JSON object such as {"source": "leave.md"}')
    if not written:
        return None
    found = _conditions(written, 1)
    count = sum(1 for _ in conditions(found))
    if count > MAX_FILTER_CONDITIONS:
        raise _invalid(f"{count} conditions, at most {MAX_FILTER_CONDITIONS} are allowed")
    return found


def conditions(where: Filter) -> Iterator[Condition]:
    """Yield every condition of a filter."""
    if isinstance(where, Condition):
        yield where
    elif isinstance(where, Not):
        yield from conditions(where.part)
    else:
        for part in where.parts:
            yield from conditions(part)


def own_fields(where: Filter) -> Iterator[Condition]:
    """Yield the conditions on fields that not every document may have."""
    return (each for each in conditions(where) if each.field not in FIELDS)


def unknown_field(field: str, known: list[str]) -> InvalidRequest:
    """Return the error for a field that no document has; ``known`` are those that there are."""
    return _invalid(f"unknown field {field[:80]!r}; the fields are {_listed([*FIELDS, *known])}")


def moment(value: str) -> Span:
    """Return the first and last instant, in UTC, of a date or a time as ISO 8601.

    Raises:
        ValueError: it is neither.
    """
    if len(value) <= 10:
        day = date.fromisoformat(value)
        first = datetime(day.year, day.month, day.day, tzinfo=UTC)
        return first, first + timedelta(hours=23, minutes=59, seconds=59, microseconds=999_999)
    instant = datetime.fromisoformat(value)
    instant = instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
    return instant, instant


def kind_of(value: object) -> Kind | None:
    """Return what kind of value this is, None for none that a field may have."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "text"
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return "number" if finite else None


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"not JSON ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _invalid(f"{twice[:80]!r} is there twice in one object; use $and")
    return found


def _conditions(written: object, depth: int) -> Filter:
    if depth > MAX_FILTER_DEPTH:
        raise _invalid(f"nested deeper than {MAX_FILTER_DEPTH} levels")
    if not isinstance(written, dict) or not written:
        raise _invalid(
            f'expected an object such as {{"source": "leave.md"}}, got {_shown(written)}'
        )
    return _joined(All, [_part(name, value, depth) for name, value in written.items()])


def _part(name: str, value: object, depth: int) -> Filter:
    if name == "$not":
        return Not(_conditions(value, depth + 1))
    if name in CONNECTIVES:
        return _connected(name, value, depth)
    if name.startswith("$"):
        raise _invalid(f"unknown operator {name[:80]!r}; here may be {_listed(CONNECTIVES)}, or "
                       "a field")  # fmt: skip
    return _field(name, value)


def _connected(name: str, value: object, depth: int) -> Filter:
    if not isinstance(value, list) or not value:
        raise _invalid(f"`{name}` takes a list of conditions, got {_shown(value)}")
    parts = [_conditions(each, depth + 1) for each in value]
    return _joined(All if name == "$and" else AnyOf, parts)


def _joined(kind: type[All] | type[AnyOf], parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else kind(frozenset(parts))


def _field(field: str, value: object) -> Filter:
    if field in RESERVED or not _NAME.fullmatch(field):
        raise unknown_field(field, ["those of the documents' own metadata"])
    if not isinstance(value, dict):
        return _condition(field, "$in" if isinstance(value, list) else "$eq", value)
    if not value:
        raise _invalid(f"`{field}` has no operator; the operators are {_listed(OPERATORS)}")
    return _joined(All, [_condition(field, name, each) for name, each in value.items()])


def _condition(field: str, operator: str, value: object) -> Filter:
    if operator not in OPERATORS:
        raise _invalid(f"`{field}` has the unknown operator {operator[:80]!r}; the operators are "
                       f"{_listed(OPERATORS)}")  # fmt: skip
    values = value if operator in ("$in", "$nin") else [value]
    if not isinstance(values, list) or not 0 < len(values) <= MAX_FILTER_VALUES:
        raise _invalid(f"`{field}` {operator} takes a list of 1 to {MAX_FILTER_VALUES} values")
    kind = _kind(field, operator, values)
    spans = frozenset(_span(field, kind, each) for each in values)
    positive = _NEGATED.get(operator, "$in" if operator == "$eq" else operator)
    found = Condition(field, positive, kind, spans)
    return Not(found) if operator in _NEGATED else found


def _kind(field: str, operator: str, values: list[Any]) -> Kind:
    kind = FIELDS.get(field) or kind_of(values[0])
    written: Kind | None = "text" if kind == "moment" else kind
    if kind is None or any(kind_of(each) != written for each in values):
        wrong = next(each for each in values if kind is None or kind_of(each) != written)
        allowed = KINDS[kind] if field in FIELDS and kind else "texts, numbers, or true and false"
        raise _invalid(f"`{field}` is compared with {_shown(wrong)}, expected {allowed}")
    orderless = operator in _RANGES and kind == "boolean"
    if orderless or (operator == "$prefix" and kind != "text"):
        raise _invalid(f"`{field}` {operator} does not go with {KINDS[kind]}")
    return kind


def _span(field: str, kind: Kind, value: Any) -> Span:
    if kind != "moment":
        return value, value
    try:
        return moment(value)
    except (ValueError, OverflowError):
        raise _invalid(f"`{field}` is compared with {_shown(value)}, expected "
                       f"{KINDS['moment']}") from None  # fmt: skip


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(name if " " in name else f"`{name}`" for name in names)


def _shown(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False)[:80]
    return shown.encode("utf-8", "backslashreplace").decode()  # JSON can escape half a character


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(f"filter: {what}")
