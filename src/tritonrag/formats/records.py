"""JSON: a line ``key path: value`` for each value; the records of a list stay apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.decoding import decoded
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import telling

_HEADING_LEVELS = 3
"""Objects nested deeper than this are told by their key path alone."""


def parse(content: bytes) -> Outline:
    """Parse a JSON document, whose outer objects become headings."""
    value = json.loads(decoded(content))
    builder = ExtractedBlocks()
    _add(builder, value, 1)
    return builder.outline(telling(value.get("title")) if isinstance(value, dict) else None)


def _add(builder: ExtractedBlocks, value: Any, level: int) -> None:
    if isinstance(value, dict):
        nested = {
            key: each for key, each in value.items() if level <= _HEADING_LEVELS and _deep(each)
        }
        flat = {key: each for key, each in value.items() if key not in nested}
        builder.add("\n".join(_lines(flat, "")))
        for key, each in nested.items():
            builder.heading(level, key)
            _add(builder, each, level + 1)
            builder.leave(level)
    elif isinstance(value, list) and _deep(value):
        for record in value:
            builder.add("\n".join(_lines(record, "")))
    else:
        builder.add("\n".join(_lines(value, "")))


def _deep(value: Any) -> bool:
    """Tell whether a value holds objects or lists of objects, or is an object."""
    if isinstance(value, list):
        return any(isinstance(each, dict | list) for each in value)
    return isinstance(value, dict)


def _lines(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _lines(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and _deep(value):
        for number, each in enumerate(value, 1):
            yield from _lines(each, f"{path} {number}" if path else str(number))
    elif isinstance(value, list):
        yield _line(path, ", ".join(filter(None, map(_shown, value))))
    else:
        yield _line(path, _shown(value))


def _line(path: str, text: str) -> str:
    if not text:
        return ""
    return f"{path}: {text}" if path else text


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value)
