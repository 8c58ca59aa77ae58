"""What office files, PDFs and mails say of themselves, as metadata that is always well formed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

_MEANINGLESS = frozenset(
    {"anonymous", "(anonymous)", "untitled", "unspecified", "(unspecified)", "unknown"}
    | {"document", "powerpoint presentation", "presentation", "microsoft word", "book"}
)
"""Titles and authors that programs put where nobody has written one."""

_MAX_CHARS = 256


def facts(author: object = None, created: object = None, modified: object = None) -> dict[str, Any]:
    """Return the metadata of a document that may lack any of it."""
    values: dict[str, Any] = {"author": telling(author)}
    values |= {
        name: moment
        for name, moment in (("created", created), ("modified", modified))
        if isinstance(moment, datetime)
    }
    return {name: value for name, value in values.items() if value}


def telling(value: object) -> str | None:
    """Return a title or an author on one line, or None where it says nothing."""
    if not isinstance(value, str):
        return None
    text = " ".join(value.replace("\0", " ").split())[:_MAX_CHARS]
    return text if text and text.casefold() not in _MEANINGLESS else None
