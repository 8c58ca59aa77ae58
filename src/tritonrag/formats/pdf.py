"""PDF, page by page; its bookmarks are the headings.

Nothing in it is run or followed: scripts, links, forms and attached files are left alone.
"""

from __future__ import annotations

import io
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from pypdf import PdfReader
from pypdf.errors import PyPdfError
from pypdf.generic import Destination

from tritonrag.errors import InvalidRequest
from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import facts, telling

# It warns of every oddity of a file, on a terminal that shows a progress bar.
logging.getLogger("pypdf").setLevel(logging.CRITICAL)

_FULL_LINE = 0.7
"""A line of less than this share of the usual length was meant to end there."""

_SHORT_LINE = 24
"""A shorter one was meant to end there whatever the usual length: a form, not prose."""

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


def parse(content: bytes) -> Outline:
    """Parse a PDF.

    Raises:
        InvalidRequest: it needs a password, or holds images of text only.
    """
    reader = PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise InvalidRequest("needs a password; save it without one")
    bookmarks = _bookmarks(reader)
    builder = ExtractedBlocks()
    for number, page in enumerate(reader.pages):
        builder.go_to(f"page {number + 1}", keep_headings=True)
        _add_page(builder, page.extract_text().translate(_REPAIRS), bookmarks[number])
    information = reader.metadata
    title = telling(information.title) if information else None
    outline = builder.outline(title, _facts(reader))
    if not outline.blocks:
        raise InvalidRequest("holds no text, at most images of it; run OCR on it first")
    return outline


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


def _add_page(builder: ExtractedBlocks, text: str, bookmarks: list[Bookmark]) -> None:
    """Add a page, each of whose bookmarks is a heading from the line that it names."""
    lines = [line.strip() for line in text.splitlines()]
    begun = 0
    for level, title in bookmarks:
        at = next((at for at in range(begun, len(lines)) if _names(lines[at], title)), None)
        if at is not None:
            _add_lines(builder, lines[begun:at])
            begun = at + 1
        builder.heading(level, title if at is None else lines[at])
    _add_lines(builder, lines[begun:])


def _names(line: str, title: str) -> bool:
    """Tell whether a line is the heading that a bookmark names, perhaps without its number."""
    return re.fullmatch(_NUMBER + re.escape(title), " ".join(line.split())) is not None


def _add_lines(builder: ExtractedBlocks, lines: list[str]) -> None:
    """Add the paragraphs of a page, whose lines are joined where they were only wrapped."""
    lengths = sorted(len(line) for line in lines if line)
    usual = lengths[int(_USUAL * (len(lengths) - 1))] if lengths else 0
    full = max(_SHORT_LINE, _FULL_LINE * usual)
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
