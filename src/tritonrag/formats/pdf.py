"""PDF, page by page; its bookmarks are the headings, or else what is set in larger letters.

Nothing in it is run or followed: scripts, links, forms and attached files are left alone.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from pypdf import PageObject, PdfReader
from pypdf.errors import PyPdfError
from pypdf.generic import Destination

from tritonrag.errors import InvalidRequest
from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import facts, telling
from tritonrag.formats.typography import (
    CELL_SEPARATOR,
    Heading,
    Line,
    headings_by_size,
    with_rows,
    without_running_heads,
)

# It warns of every oddity of a file, on a terminal that shows a progress bar.
logging.getLogger("pypdf").setLevel(logging.CRITICAL)

_FULL_LINE = 0.7
"""A line of less than this share of the usual length was meant to end there."""

_SHORT_LINE = 24
"""A shorter one was meant to end there whatever the usual length: a form, not prose."""

_FORM_CELLS = 2
"""Rows of a label and a value have no header."""

_USUAL = 0.8
"""So many of the lines of a page are no longer than the usual one."""

_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl",
              0xFB05: "st", 0xFB06: "st"}  # fmt: skip
_DROPPED = {0: None, 0xFFFE: None, 0xFEFF: None, 0x200B: None}
_REPAIRS: Mapping[int, str | None] = {**_LIGATURES, **_DROPPED}
_HYPHENATED = re.compile(r"[^\W\d_](?:-|\u00ad)\Z")
_WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]")
_NUMBER = r"(?:[\dA-Z]+(?:\.\d+)*\.?\s+)?"

Bookmark = tuple[int, str]
"""Its level, from 1, and its title."""

Matrix = Sequence[float]
"""``a b c d e f`` of a transformation in a PDF."""

_Looks = tuple[float, float, float]
"""Size, x and y in points."""

_Letter = tuple[str, _Looks]


def parse(content: bytes) -> Outline:
    """Parse a PDF.

    Raises:
        InvalidRequest: it needs a password, or holds images of text only.
    """
    reader = PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise InvalidRequest("needs a password; save it without one")
    pages = without_running_heads([_lines(page) for page in reader.pages])
    builder = ExtractedBlocks()
    headings = _headings(pages, _bookmarks(reader))
    for number, (lines, above) in enumerate(zip(pages, headings, strict=True), 1):
        builder.go_to(f"page {number}", keep_headings=True)
        _add_page(builder, lines, above)
    information = reader.metadata
    title = telling(information.title) if information else None
    outline = builder.outline(title, _facts(reader))
    if not outline.blocks:
        raise InvalidRequest("holds no text, at most images of it; run OCR on it first")
    return outline


def _lines(page: PageObject) -> list[Line]:
    """Return the lines of a page in reading order."""
    letters: list[_Letter] = []

    def visit(text: str, outer: Matrix, inner: Matrix, font: object, size: float) -> None:
        looks = _looks(inner, outer, size)
        letters.extend((char, looks) for char in text)

    page.extract_text(visitor_text=visit)
    ended = [at for at, (char, _) in enumerate(letters) if char == "\n"]
    starts = [0, *(at + 1 for at in ended)]
    ends = [*ended, None]
    return with_rows(_line(letters[start:end]) for start, end in zip(starts, ends, strict=True))


def _line(letters: list[_Letter]) -> Line:
    text = "".join(char for char, _ in letters).translate(_REPAIRS)
    looks = [each for char, each in letters if not char.isspace()]
    if not looks:
        return Line("", 0.0)
    size = Counter(size for size, _, _ in looks).most_common(1)[0][0]
    return Line(" ".join(text.split()), size, *looks[0][1:])


def _looks(inner: Matrix, outer: Matrix, size: float) -> _Looks:
    """Return the size and the place of letters, whose place is unknown where they are turned."""
    points = size * math.hypot(inner[2], inner[3]) * math.hypot(outer[2], outer[3])
    x = inner[4] * outer[0] + inner[5] * outer[2] + outer[4]
    y = inner[4] * outer[1] + inner[5] * outer[3] + outer[5]
    turned = inner[1] or outer[1]
    return round(points, 1), x, math.nan if turned else y


def _bookmarks(reader: PdfReader) -> Mapping[int, list[Bookmark]]:
    """Return the bookmarks of each page, counted from 0, in their order."""
    found: dict[int, list[Bookmark]] = defaultdict(list)
    try:
        for level, entry in _entries(reader.outline, 1):
            number = reader.get_destination_page_number(entry)
            title = " ".join(str(entry.title or "").split())
            if number is not None and title:
                found[number].append((level, title))
    except (PyPdfError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return defaultdict(list)  # Damaged bookmarks are no reason to leave the pages out.
    return found


def _entries(entries: Iterable[object], level: int) -> Iterator[tuple[int, Destination]]:
    for entry in entries:
        if isinstance(entry, list):
            yield from _entries(entry, level + 1)
        elif isinstance(entry, Destination):
            yield level, entry


def _headings(
    pages: list[list[Line]], bookmarks: Mapping[int, list[Bookmark]]
) -> list[list[Heading]]:
    """Return the headings of each page, by the bookmarks or, where there are none, by size."""
    if not bookmarks:
        return headings_by_size(pages)
    return [list(_named(lines, bookmarks.get(page, []))) for page, lines in enumerate(pages)]


def _named(lines: list[Line], bookmarks: list[Bookmark]) -> Iterator[Heading]:
    """Yield a heading for each bookmark of a page, at the line that it names if there is one."""
    begun = 0
    for level, title in bookmarks:
        found = (at for at in range(begun, len(lines)) if _names(lines[at].text, title))
        at = next(found, None)
        if at is None:
            yield Heading(begun, begun, level, title)
        else:
            begun = at + 1
            yield Heading(at, begun, level, lines[at].text)


def _names(line: str, title: str) -> bool:
    """Tell whether a line is the heading that a bookmark names, perhaps without its number."""
    text = line.replace(CELL_SEPARATOR, " ")
    return re.fullmatch(_NUMBER + re.escape(title), text) is not None


def _add_page(builder: ExtractedBlocks, lines: list[Line], headings: list[Heading]) -> None:
    begun = 0
    for heading in headings:
        _add_lines(builder, lines[begun : heading.start])
        builder.heading(heading.level, heading.text)
        begun = heading.end
    _add_lines(builder, lines[begun:])


def _add_lines(builder: ExtractedBlocks, lines: list[Line]) -> None:
    """Add the tables and the paragraphs of a part of a page."""
    lengths = sorted(len(line.text) for line in lines if line.text)
    usual = lengths[int(_USUAL * (len(lengths) - 1))] if lengths else 0
    full = max(_SHORT_LINE, _FULL_LINE * usual)
    for tabular, run in groupby(lines, key=lambda line: line.cells > 1):
        rows = list(run)
        texts = [row.text for row in rows]
        if tabular and len(rows) > 1:
            headed = rows[0].cells > _FORM_CELLS
            builder.add("\n".join(texts), "table", header_rows=int(headed))
        else:
            _add_paragraphs(builder, texts, full)


def _add_paragraphs(builder: ExtractedBlocks, lines: list[str], full: float) -> None:
    """Add paragraphs, whose lines are joined where they were only wrapped."""
    pieces: list[str] = []
    for line in lines:
        if not line:
            builder.add("".join(pieces))
            pieces = []
        else:
            pieces.extend(_joined(pieces, line, full))
    builder.add("".join(pieces))


def _joined(pieces: list[str], line: str, full: float) -> Iterator[str]:
    """Yield what follows ``pieces``, the lines before, whose last may lose its hyphen."""
    above = pieces[-1] if pieces else ""
    if above and _HYPHENATED.search(above):
        if line[0].islower():
            pieces[-1] = above[:-1]
    elif above and len(above) < full:
        yield "\n"
    elif above and not (_WIDE.match(above[-1]) and _WIDE.match(line[0])):
        yield " "
    yield line


def _facts(reader: PdfReader) -> dict[str, object]:
    information = reader.metadata
    if information is None:
        return {}
    try:
        created, modified = information.creation_date, information.modification_date
    except (ValueError, TypeError, OverflowError):  # A date that is none.
        created = modified = None
    return facts(information.author, created, modified)
