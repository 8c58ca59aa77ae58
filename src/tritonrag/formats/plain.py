"""Plain text: paragraphs end at blank lines, list items at the next one."""

from __future__ import annotations

import re

from tritonrag.formats.building import LocatedBlocks
from tritonrag.formats.decoding import decoded
from tritonrag.formats.front_matter import check_closes_nothing
from tritonrag.formats.outline import Outline

_PARAGRAPH = re.compile(r"\S.*?(?=\s*\n[ \t\r]*\n|\s*\Z)", re.DOTALL)
_ITEM = re.compile(r"\s*([-*+\u2022]|\d{1,3}[.)])\s+")
_ITEM_START = re.compile(r"\n(?=\s*(?:[-*+\u2022]|\d{1,3}[.)])\s)")


def parse(content: bytes) -> Outline:
    """Parse a plain text file."""
    text = decoded(content)
    check_closes_nothing(text)
    return parse_text(text)


def parse_text(source: str) -> Outline:
    """Parse plain text."""
    builder = LocatedBlocks(source)
    for paragraph in _PARAGRAPH.finditer(source):
        start, end = paragraph.span()
        for line in _ITEM_START.split(paragraph.group()):
            item = _ITEM.match(line)
            marker, text = (item.group(1) + " ", line[item.end() :]) if item else ("", line)
            text = " ".join(text.split())
            builder.add(text, "item" if item else "text", marker=marker, floor=start, ceiling=end)
    return builder.outline()
