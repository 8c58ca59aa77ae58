"""Blocks as they are collected, in a text that is there already or in one that is extracted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from tritonrag.formats.outline import Block, Kind, Outline

_CLOSE, _NEAR, _FAR = 40, 400, 4000
"""How far apart two words may be in a file: as a rule, at most, and from one block to the next."""

_WORD = re.compile(r"\w+")


class LocatedBlocks:
    """Collects the blocks of a text under its headings, and finds their words in it."""

    def __init__(self, source: str, searched: str | None = None) -> None:
        """``searched`` is what words are looked for in: ``source`` with markup blanked out."""
        self._source = source
        self._searched = source if searched is None else searched
        self._blocks: list[Block] = []
        self._headings: list[tuple[int, str]] = []
        self._title: str | None = None
        self.cursor = 0

    def heading(self, level: int, text: str, *, floor: int = 0, ceiling: int | None = None) -> None:
        """Put what follows under a heading, whose own words stand as in :meth:`add`."""
        text = " ".join(text.split())
        if not text:
            return
        self._located(text, floor, ceiling)
        self._headings = _below(self._headings, level, text)
        if level == 1 and self._title is None:
            self._title = text

    def add(
        self,
        text: str,
        kind: Kind,
        *,
        marker: str = "",
        floor: int = 0,
        ceiling: int | None = None,
        header_rows: int = 0,
    ) -> None:
        """Add a block whose words stand at or after ``floor`` and before ``ceiling``."""
        text = _cleaned(text, kind)
        if not _telling(text):
            return
        start = max(self.cursor, floor)
        words = self._located(text, floor, ceiling)
        path = tuple(name for _, name in self._headings)
        start = words[0][1] if words else start
        self._blocks.append(Block(text, kind, path, marker, start, words, header_rows=header_rows))

    def outline(
        self, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Outline:
        """Return what was collected; the first top heading goes before ``title``.

        The title is not repeated in the heading paths.
        """
        title = self._title or title
        blocks = [_without_title(block, title) for block in self._blocks]
        return Outline(title, blocks, self._source, metadata or {})

    def _located(self, text: str, floor: int, ceiling: int | None) -> list[tuple[int, int, int]]:
        self.cursor = max(self.cursor, floor)
        return list(self._find(text, ceiling))

    def _find(self, text: str, ceiling: int | None) -> Iterator[tuple[int, int, int]]:
        limit = len(self._searched) if ceiling is None else ceiling
        reach = _FAR
        words = list(_WORD.finditer(text))
        for word, after in zip_longest(words, words[1:]):
            found = self._searched.find(word.group(), self.cursor, min(limit, self.cursor + reach))
            length = word.end() - word.start()
            if found < 0 or not self._plausible(found, length, after):
                continue
            self.cursor = found + length
            reach = _NEAR
            yield word.start(), found, length

    def _plausible(self, found: int, length: int, after: re.Match[str] | None) -> bool:
        """Tell whether a word is at ``found`` rather than another one that looks the same.

        Markup can hide a word altogether; one further away must be followed by the next word.
        """
        if found <= self.cursor + _CLOSE:
            return True
        end = found + length
        return after is not None and self._searched.find(after.group(), end, end + _CLOSE) >= 0


class ExtractedBlocks:
    """Collects blocks and writes the text that they are the pieces of.

    A heading that nothing stands under is a block too, so that its words are found.
    """

    def __init__(self) -> None:
        """Start with an empty text, no heading and no place."""
        self._pieces: list[str] = []
        self._length = 0
        self._blocks: list[Block] = []
        self._headings: list[tuple[int, str]] = []
        self._place = ""
        self._bare: tuple[int, Block] | None = None

    def go_to(self, place: str, *, keep_headings: bool = False) -> None:
        """Begin a page, a slide or a sheet."""
        if not keep_headings:
            self.leave(0)
        self._place = place

    def heading(self, level: int, text: str) -> None:
        """Put what follows under a heading."""
        text = " ".join(text.split())
        if not text:
            return
        self.leave(level)
        start = self._write(text, "\n\n")
        self._bare = level, self._block(text, "text", start)
        self._headings = _below(self._headings, level, text)

    def add(self, text: str, kind: Kind = "text", marker: str = "", header_rows: int = 0) -> None:
        """Add a block under the headings so far."""
        text = _cleaned(text, kind)
        if not _telling(text):
            return
        above = self._blocks[-1] if self._blocks else None
        self._write(marker, "\n" if above and above.kind == kind == "item" else "\n\n")
        start = self._write(text)
        self._bare = None
        self._blocks.append(self._block(text, kind, start, marker, header_rows))

    def add_table(self, rows: Iterable[Iterable[str]], header_rows: int = 1) -> None:
        """Add a table, whose empty rows are left out."""
        lines = [table_row(cells) for cells in rows]
        self.add("\n".join(filter(_telling, lines)), "table", header_rows=header_rows)

    def leave(self, level: int) -> None:
        """End the part under the heading of ``level``, if there is one."""
        if self._bare and self._bare[0] >= level:
            self._blocks.extend([self._bare[1]] if _telling(self._bare[1].text) else [])
            self._bare = None
        self._headings = [above for above in self._headings if above[0] < level]

    def include(self, part: Outline, level: int = 1, *, titled: bool = True) -> None:
        """Add the blocks of another document under their headings, the outermost of ``level``.

        Its title is one of them where ``titled``.
        """
        if titled and part.title:
            self.heading(level, part.title)
            level += 1
        within: tuple[str, ...] = ()
        for block in part.blocks:
            self._enter(within, block.heading_path, level)
            within = block.heading_path
            self.add(block.text, block.kind, block.marker, block.header_rows)
        self.leave(level)

    def outline(
        self, title: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Outline:
        """Return what was collected; ``title`` is not repeated in the heading paths."""
        self.leave(0)
        blocks = [_without_title(block, title) for block in self._blocks]
        return Outline(title, blocks, "".join(self._pieces), metadata or {})

    def _enter(self, old: tuple[str, ...], new: tuple[str, ...], level: int) -> None:
        """Go from one heading path to another, the outermost of ``level``."""
        pairs = enumerate(zip_longest(old, new))
        shared = next((depth for depth, (one, other) in pairs if one != other), len(new))
        if old != new:
            self.leave(level + shared)
        for depth, text in enumerate(new[shared:], level + shared):
            self.heading(depth, text)

    def _block(
        self, text: str, kind: Kind, start: int, marker: str = "", header_rows: int = 0
    ) -> Block:
        path = tuple(name for _, name in self._headings)
        words = [(0, start, len(text))]
        return Block(text, kind, path, marker, start, words, self._place, header_rows)

    def _write(self, text: str, gap: str = "") -> int:
        """Write a text, after ``gap`` if anything is there; return where it begins."""
        for piece in (gap if self._pieces else "", text):
            self._pieces.append(piece)
            self._length += len(piece)
        return self._length - len(text)


def table_row(cells: Iterable[str]) -> str:
    """Return a line of a table."""
    return " | ".join(" ".join(cell.split()) for cell in cells)


def bullets() -> Iterator[str]:
    """Yield the markers of a list."""
    while True:
        yield "- "


def numbers(start: int) -> Iterator[str]:
    """Yield the markers of a numbered list."""
    while True:
        yield f"{start}. "
        start += 1


def _below(headings: list[tuple[int, str]], level: int, text: str) -> list[tuple[int, str]]:
    return [*(above for above in headings if above[0] < level), (level, text)]


def _cleaned(text: str, kind: Kind) -> str:
    if kind == "code":
        return text.strip("\n").rstrip()
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _telling(text: str) -> bool:
    return any(char.isalnum() for char in text)


def _without_title(block: Block, title: str | None) -> Block:
    path = block.heading_path
    return replace(block, heading_path=path[1:]) if path and path[0] == title else block
