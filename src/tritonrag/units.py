"""A document's smallest pieces: sentences of its language, rows of tables, lines of code.

Knows neither tokenizers nor budgets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sentencex import segment

from tritonrag.formats.outline import Block

LINEWISE = ("code", "table")
"""The kinds of blocks whose lines are their pieces."""

_LINE = re.compile(r"[^\n]*\S[^\n]*")

_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("zh", re.compile(r"[\u3400-\u9fff]")),
    ("ar", re.compile(r"[\u0600-\u06ff\ufb50-\ufdff\ufe70-\ufeff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
)
"""The language whose rules for the end of a sentence go with a script."""

_SCRIPT_SHARE = 0.2
"""The least share of a text's letters in a script: half of a Japanese text is in Chinese ones."""


@dataclass(frozen=True)
class Unit:
    """A sentence, or a line of code or of a table: what a chunk is made of.

    It is ``block.text[start:end]``, with the block's marker where it begins one. ``before`` is the
    white space between it and the unit before, and counts in ``tokens``. ``header`` of a table's
    row is put before it where it begins a chunk.
    """

    block: Block
    before: str
    marker: str
    start: int
    end: int
    tokens: int = 0
    header: str = ""
    header_tokens: int = 0

    @property
    def text(self) -> str:
        """The unit with its marker."""
        return self.marker + self.block.text[self.start : self.end]

    def source_range(self, source: str) -> tuple[int, int]:
        """Return where the unit stands in the document's text, its marker where that does too."""
        start, end = self.block.source_range(source, self.start, self.end)
        return (start - len(self.marker) if source.endswith(self.marker, 0, start) else start), end


def units_of(blocks: Iterable[Block]) -> Iterator[Unit]:
    """Yield the sentences and lines of a section with the white space between them."""
    above = None
    for block in blocks:
        before = "\n" if above and above.kind == block.kind == "item" else "\n\n"
        marker, last = block.marker, None
        header = _header(block)
        for start, end in _lines(block) if block.kind in LINEWISE else _sentences(block):
            if last is not None:
                before, marker = block.text[last:start], ""
            below = header if start >= len(header) else ""
            yield Unit(block, before, marker, start, end, header=below)
            last = end
        above = block


def _header(block: Block) -> str:
    """Return the lines that say what the others of a table hold."""
    lines = block.text.split("\n")
    heads = lines[: block.header_rows]
    return "\n".join([*heads, ""]) if 0 < block.header_rows < len(lines) else ""


def _sentences(block: Block) -> Iterator[tuple[int, int]]:
    """Yield where each sentence of each line starts and ends, white space around it left out."""
    language = _language(block.text)
    for line in _LINE.finditer(block.text):
        start = line.start()
        for sentence in segment(language, line.group()):
            bare = sentence.strip()
            if bare:
                first = start + sentence.index(bare)
                yield first, first + len(bare)
            start += len(sentence)


def _language(text: str) -> str:
    """Return the language whose sentences a text is cut into, as its script tells."""
    if text.isascii():
        return "en"
    letters = sum(map(str.isalpha, text))
    shares = ((name, len(script.findall(text))) for name, script in _SCRIPTS)
    return next((name for name, count in shares if count > _SCRIPT_SHARE * letters), "en")


def _lines(block: Block) -> Iterator[tuple[int, int]]:
    for line in _LINE.finditer(block.text):
        yield line.start(), line.start() + len(line.group().rstrip())
