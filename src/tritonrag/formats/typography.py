"""What the look of a PDF's lines tells: headings by their size, rows of tables, running heads.

Knows nothing of PDF itself: a page is its lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan

_LARGER = 1.15
"""A heading's letters are at least so many times the size of those of the text."""

_MAX_HEADING_CHARS, _MAX_HEADING_LINES = 120, 3
_MAX_HEADINGS_SHARE = 0.15
"""Where more of the letters than this are large, their size says nothing."""

_LEVELS = 4

_EDGE_LINES = 2
_LEAST_PAGES = 3
_DIGITS = re.compile(r"\d+")


CELL_SEPARATOR = " | "

_SAME_BASELINE = 0.2
"""How far apart, in sizes of their letters, the baselines of the cells of a row may be."""


_LETTER_WIDTH = 0.5
"""Of a usual letter, in sizes."""

_MARKER = re.compile(r"\(?\w{1,3}[.)]|\.\d{1,3}|[\u2022\u00b7\u25aa\u2013*-]")


@dataclass(frozen=True)
class Line:
    """A line of a page, and how it looks.

    ``size`` is that of most of its letters, ``x`` and ``y`` where its last cell begins, in points
    from the lower left; ``y`` is not a number where the line does not run from left to right.
    """

    text: str
    size: float
    x: float = 0.0
    y: float = nan
    cells: int = 1


@dataclass(frozen=True)
class Heading:
    """``lines[start:end]`` of a page are a heading; none are where it only begins there."""

    start: int
    end: int
    level: int
    text: str


def with_rows(lines: Iterable[Line]) -> list[Line]:
    """Return the lines with those joined that stand beside each other: cells of a table's row.

    A number or a bullet is no cell.
    """
    joined: list[Line] = []
    for line in lines:
        above = joined[-1] if joined else None
        if above and above.text and line.text and _beside(above, line):
            joined[-1] = _continued(above, line) if _goes_on(above, line) else _row(above, line)
        else:
            joined.append(line)
    return joined


def headings_by_size(pages: Sequence[Sequence[Line]]) -> list[list[Heading]]:
    """Return the headings of each page: short lines in larger letters, the largest of level 1."""
    letters = Counter[float]()
    for line in _all(pages):
        letters[line.size] += len(line.text)
    body = max(letters, key=lambda size: letters[size], default=0.0)
    large = [line for line in _all(pages) if _is_large(line, body)]
    if sum(len(line.text) for line in large) > _MAX_HEADINGS_SHARE * letters.total():
        return [[] for _ in pages]
    sizes = sorted({line.size for line in large}, reverse=True)
    levels = {size: min(at, _LEVELS) for at, size in enumerate(sizes, 1)}
    return [list(_headings(page, levels)) for page in pages]


def without_running_heads(pages: Sequence[Sequence[Line]]) -> list[list[Line]]:
    """Return the pages without the first and last lines that most of them share.

    Numbers may differ in them. A page of nothing else keeps its lines.
    """
    if len(pages) < _LEAST_PAGES:
        return [list(page) for page in pages]
    counts = Counter(shape for page in pages for shape in set(map(_shape, _edges(page))))
    running = {shape for shape, count in counts.items() if 2 * count > len(pages)}
    return [_without(page, running) for page in pages]


def _headings(page: Sequence[Line], levels: dict[float, int]) -> Iterator[Heading]:
    at = 0
    while at < len(page):
        end = at
        while end < len(page) and page[end].text and page[end].size == page[at].size:
            end += 1
        level = levels.get(page[at].size)
        if level and page[at].text and end - at <= _MAX_HEADING_LINES:
            yield Heading(at, end, level, " ".join(line.text for line in page[at:end]))
        at = max(end, at + 1)


def _goes_on(left: Line, right: Line) -> bool:
    """Tell whether two pieces are one text, as where the letters change, rather than two cells."""
    cell = left.text.rpartition(CELL_SEPARATOR)[2]
    if left.cells == 1 and _MARKER.fullmatch(cell):
        return True
    return right.x - (left.x + _LETTER_WIDTH * left.size * len(cell)) < left.size


def _continued(left: Line, right: Line) -> Line:
    return replace(left, text=f"{left.text} {right.text}")


def _row(left: Line, right: Line) -> Line:
    text = f"{left.text}{CELL_SEPARATOR}{right.text}"
    return replace(left, text=text, x=right.x, cells=left.cells + 1)


def _beside(left: Line, right: Line) -> bool:
    smaller, larger = sorted((left.size, right.size))
    near = abs(left.y - right.y) <= _SAME_BASELINE * larger
    return near and right.x > left.x and larger < _LARGER * smaller


def _is_large(line: Line, body: float) -> bool:
    telling = any(map(str.isalpha, line.text)) and len(line.text) <= _MAX_HEADING_CHARS
    return telling and line.size >= _LARGER * body


def _without(page: Sequence[Line], running: set[str]) -> list[Line]:
    kept = [line for line in page if line.text]
    dropped = {id(line) for line in _edges(page) if _shape(line) in running}
    if all(id(line) in dropped for line in kept):
        return list(page)
    return [line for line in page if id(line) not in dropped]


def _edges(page: Sequence[Line]) -> list[Line]:
    lines = [line for line in page if line.text]
    return lines[:_EDGE_LINES] + lines[max(_EDGE_LINES, len(lines) - _EDGE_LINES) :]


def _shape(line: Line) -> str:
    return _DIGITS.sub("#", line.text)


def _all(pages: Sequence[Sequence[Line]]) -> Iterator[Line]:
    return (line for page in pages for line in page if line.text)
