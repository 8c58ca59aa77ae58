"""What every parser gives: the blocks of a document in reading order, under headings.

A block is a paragraph, a list item, a table or code, in the words a reader sees, with a map from
each of its words back to the document's text. Knows neither files nor tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["text", "item", "table", "code"]

MARKUP_CHARS = 4
"""How much markup, such as ``**``, may stand between a word and its full stop."""


@dataclass(frozen=True)
class Block:
    """A piece of a document in reading order.

    ``text`` has single spaces where the file had soft line breaks; newlines are meant. ``marker``
    is a list item's bullet or number. ``words`` are ``(place in text, place in file, length)`` of
    the words found again in the document's text, in order; ``start`` is where the block begins
    there. ``place`` is the page, slide or sheet, such as ``page 4``, and empty where a file has
    none. ``header_rows`` of a table's first lines say what the others hold.
    """

    text: str
    kind: Kind
    heading_path: tuple[str, ...]
    marker: str
    start: int
    words: list[tuple[int, int, int]] = field(repr=False)
    place: str = ""
    header_rows: int = 0

    def source_range(self, source: str, start: int, end: int) -> tuple[int, int]:
        """Return where ``text[start:end]`` stands in the document, as character offsets."""
        first = self._source_start(source, start)
        return first, max(first, self._source_end(source, end))

    def _source_start(self, source: str, at: int) -> int:
        after = bisect_right(self.words, at, key=_text_place)
        if after and at < sum(self.words[after - 1][::2]):
            place, found, _ = self.words[after - 1]
            return found + at - place
        if after == len(self.words):
            return sum(self.words[-1][1:]) if self.words else self.start
        place, found, _ = self.words[after]
        before = found - (place - at)
        return before if source[before:found] == self.text[at:place] else found

    def _source_end(self, source: str, at: int) -> int:
        after = bisect_left(self.words, at, key=_text_place)
        if not after:
            return self.start
        place, found, length = self.words[after - 1]
        end = found + min(length, at - place)
        for char in self.text[place + length : at].strip():
            near = source.find(char, end, end + MARKUP_CHARS)
            end = near + 1 if near >= 0 else end
        return end


@dataclass(frozen=True)
class Outline:
    """What a parser finds.

    Attributes:
        title: what the document calls itself, if it does.
        blocks: its text in reading order.
        text: what the offsets of the blocks count in: the file's own text where it is Markdown,
            reStructuredText, HTML or plain text, and otherwise what was extracted from it.
        metadata: what the document says of itself, under the names of
            :class:`tritonrag.metadata.Metadata`.
    """

    title: str | None
    blocks: list[Block]
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def _text_place(word: tuple[int, int, int]) -> int:
    return word[0]
