"""The ``filter`` of a search: which values the fields of a passage may have.

Pure: knows neither Triton nor FAISS.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tritonrag.errors import InvalidRequest

Filter = Mapping[str, tuple[str, ...]]
"""Field to allowed values; a passage must satisfy every field. Empty: no condition."""

FIELDS = ("source", "title")
MAX_FILTER_BYTES = 16 * 1024
MAX_VALUES = 256
"""Most values of one field."""


def parse_filter(text: str) -> Filter:
    """Return the filter in ``text``, a JSON object of field to value or list of values.

    Blank text and ``{}`` set no condition.

    Raises:
        InvalidRequest: it is too long, not a JSON object, or names an unknown field or a value
            that is not a string; the message names the field and what is allowed.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_FILTER_BYTES:
        raise InvalidRequest(f"filter: over {MAX_FILTER_BYTES} bytes; ask for fewer values")
    if not text.strip():
        return {}
    return {field: _values(field, value) for field, value in _conditions(text).items()}


def _conditions(text: str) -> dict[str, object]:
    try:
        conditions = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"filter: not JSON ({error})") from error
    if not isinstance(conditions, dict):
        raise InvalidRequest('filter: expected a JSON object such as {"source": "leave.md"}')
    return conditions


def _values(field: str, value: object) -> tuple[str, ...]:
    if field not in FIELDS:
        allowed = " and ".join(f"`{name}`" for name in FIELDS)
        raise InvalidRequest(f"filter: unknown field {field[:80]!r}; the fields are {allowed}")
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str) for one in values):
        raise InvalidRequest(f"filter: `{field}` takes a string or a list of strings")
    if len(values) > MAX_VALUES:
        raise InvalidRequest(f"filter: `{field}` takes at most {MAX_VALUES} values")
    return tuple(sorted(set(values)))
