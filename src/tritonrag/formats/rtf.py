"""Rich Text Format: its paragraphs and tables. It has no headings that can be relied on."""

from __future__ import annotations

import re
from itertools import groupby

from striprtf.striprtf import rtf_to_text

from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import telling

_CELL_END = "|"
_TITLE = re.compile(r"\{\\title ([^{}]+)\}")


def parse(content: bytes) -> Outline:
    """Parse an RTF file."""
    source = content.decode("latin-1")  # RTF is ASCII: everything else is escaped in it.
    title = _TITLE.search(source)
    builder = ExtractedBlocks()
    for tabular, lines in groupby(_text(source).splitlines(), key=_is_row):
        if tabular:
            builder.add_table(line.rstrip(_CELL_END).split(_CELL_END) for line in lines)
        else:
            for line in lines:
                builder.add(line)
    return builder.outline(telling(_text(f"{{\\rtf1 {title[1]}}}")) if title else None)


def _text(source: str) -> str:
    text: str = rtf_to_text(source, errors="replace")
    return text


def _is_row(line: str) -> bool:
    return line.endswith(_CELL_END)
