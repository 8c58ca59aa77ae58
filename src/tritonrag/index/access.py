"""The ``groups`` of a search: which documents the caller may read.

A document with access tags is for callers in at least one of them, one without is for everyone.
The server takes ``groups`` as given: who sets it must know the caller (docs/operations.md).
"""

from __future__ import annotations

import json

from tritonrag.contract import MAX_GROUP_CHARS, MAX_GROUPS, MAX_GROUPS_BYTES
from tritonrag.errors import InvalidRequest
from tritonrag.index.columns import Groups


def parse_groups(text: str) -> Groups:
    """Return the groups in ``text``, a JSON list of texts; blank text is none.

    Raises:
        InvalidRequest: it is anything else, too long, or holds too many.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_GROUPS_BYTES:
        raise InvalidRequest(f"groups: over {MAX_GROUPS_BYTES} bytes")
    if not text.strip():
        return frozenset()
    try:
        groups = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"groups: not JSON ({error})") from error
    if not isinstance(groups, list) or not all(map(_is_group, groups)):
        raise InvalidRequest(
            f"groups: expected a JSON list of texts of 1 to {MAX_GROUP_CHARS} characters, such as "
            '["staff"]'
        )
    if len(groups) > MAX_GROUPS:
        raise InvalidRequest(f"groups: {len(groups)} groups, at most {MAX_GROUPS} are allowed")
    return frozenset(groups)


def _is_group(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_GROUP_CHARS
