"""Delimited text (CSV, TSV): rows under the header row, whatever the delimiter and encoding."""

from __future__ import annotations

import csv
from collections import Counter
from itertools import islice

from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.decoding import decoded
from tritonrag.formats.outline import Outline

_DELIMITERS = ",;\t|"
_LOOKED_AT_LINES = 32


def parse(content: bytes) -> Outline:
    """Parse delimited text, whose first row is the header."""
    lines = decoded(content).splitlines(keepends=True)
    builder = ExtractedBlocks()
    builder.add_table(csv.reader(lines, delimiter=_delimiter(lines)))
    return builder.outline()


def _delimiter(lines: list[str]) -> str:
    """Return the delimiter that cuts most of the first rows into the same number of cells."""
    return max(_DELIMITERS, key=lambda delimiter: _regularity(lines, delimiter))


def _regularity(lines: list[str], delimiter: str) -> tuple[int, int]:
    rows = islice(csv.reader(lines[:_LOOKED_AT_LINES], delimiter=delimiter), _LOOKED_AT_LINES)
    widths = Counter(len(row) for row in rows if len(row) > 1)
    width, count = max(widths.items(), key=lambda item: item[::-1], default=(0, 0))
    return count, width
