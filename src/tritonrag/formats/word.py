"""Word documents (DOCX): styled headings, lists, tables, code, equations and notes.

Text that was deleted under revision is left out, text that was inserted is in. Comments, headers
and footers, pictures and macros are left out; nothing that is linked is opened.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import docx
from docx.document import Document
from docx.enum.style import WD_STYLE_TYPE
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml import parse_xml
from docx.oxml.ns import qn

from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import facts, telling

_TITLE = re.compile(r"(?:(?:Book|Chapter|Appendix|Backmatter) ?)?Title")
_HEADING = re.compile(r"Heading ([1-9])|Head ?([A-F])")
"""The names of styles: Word's own, and those of publishers' templates."""

_CODE = re.compile(r"code|preformatted|verbatim|listing", re.IGNORECASE)
_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_COMPATIBILITY = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_BODY_LEVEL = 9

_WRITTEN = {
    qn("w:tab"): " ",
    qn("w:br"): "\n",
    qn("w:cr"): "\n",
    qn("w:noBreakHyphen"): "-",
}
_TEXT = {qn("w:t"), f"{_MATH}t"}
_SKIPPED = {qn("w:del"), qn("w:moveFrom"), qn("w:pPr"), qn("w:rPr"), f"{_COMPATIBILITY}Fallback"}


def parse(content: bytes) -> Outline:
    """Parse a Word document."""
    document = docx.Document(io.BytesIO(content))
    return _Word(document).parse()


@dataclass(frozen=True)
class _Style:
    """What a paragraph's style makes of it; ``level`` is a heading's, 0 the document's title."""

    level: int | None = None
    code: bool = False
    item: bool = False
    contents: bool = False


class _Word:
    """Walks the body of a document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._builder = ExtractedBlocks()
        self._styles: dict[str | None, _Style] = {}
        self._code: list[str] = []
        self._title: str | None = None

    def parse(self) -> Outline:
        properties = self._document.core_properties
        self._walk(self._document.element.body)
        self._flush_code()
        self._add_notes()
        return self._builder.outline(
            self._title or telling(properties.title),
            facts(properties.author, properties.created, properties.modified),
        )

    def _walk(self, parent: Any) -> None:
        for element in parent:
            if element.tag == qn("w:p"):
                self._take(element)
            elif element.tag == qn("w:tbl"):
                self._flush_code()
                self._take_table(element)
            elif element.tag in (qn("w:sdt"), qn("w:sdtContent"), qn("w:ins"), qn("w:customXml")):
                self._walk(element)

    def _take(self, paragraph: Any) -> None:
        style, text = self._style(paragraph), "".join(_pieces(paragraph))
        if style.code:
            self._code.append(text)
            return
        self._flush_code()
        if style.contents:
            return
        if style.level is not None:
            self._take_heading(style.level, " ".join(text.split()))
        elif style.item:
            self._builder.add(text, "item", "  " * _depth(paragraph) + "- ")
        else:
            self._builder.add(text)

    def _take_heading(self, level: int, text: str) -> None:
        self._builder.heading(level, text)
        if level == 0 and self._title is None:
            self._title = text or None

    def _take_table(self, table: Any) -> None:
        rows = [[_cell(cell) for cell in row.iter(qn("w:tc"))] for row in table.iter(qn("w:tr"))]
        if any(len(row) > 1 for row in rows):
            self._builder.add_table(rows)
        else:  # A box around text.
            for row in rows:
                self._builder.add("\n".join(row))

    def _flush_code(self) -> None:
        self._builder.add("\n".join(self._code), "code")
        self._code = []

    def _style(self, paragraph: Any) -> _Style:
        name = paragraph.style
        if name not in self._styles:
            self._styles[name] = self._read_style(name)
        own, style = paragraph.pPr, self._styles[name]
        if own is None:
            return style
        level = _outline_level(own)
        return _Style(
            style.level if level is None else level,
            style.code,
            style.item or own.numPr is not None,
            style.contents,
        )

    def _read_style(self, name: str | None) -> _Style:
        style: Any = self._document.styles.get_by_id(name, WD_STYLE_TYPE.PARAGRAPH)
        seen: list[Any] = []
        while style is not None and style not in seen:
            seen.append(style)
            style = style.base_style
        levels = [level for each in seen if (level := _level(each)) is not None]
        names = [str(each.name) for each in seen]
        return _Style(
            levels[0] if levels else None,
            any(map(_CODE.search, names)),
            any(each.element.find(f".//{qn('w:numPr')}") is not None for each in seen)
            or names[0].startswith("List "),
            names[0].lower().startswith("toc "),
        )

    def _add_notes(self) -> None:
        self._builder.go_to("")
        for kind in (RELATIONSHIP_TYPE.FOOTNOTES, RELATIONSHIP_TYPE.ENDNOTES):
            for relation in self._document.part.rels.values():
                if relation.reltype == kind and not relation.is_external:
                    for note in parse_xml(relation.target_part.blob):
                        self._builder.add(_cell(note))


def _pieces(node: Any) -> Iterator[str]:
    for child in node:
        if child.tag in _TEXT:
            yield child.text or ""
        elif child.tag in _WRITTEN:
            yield _WRITTEN[child.tag]
        elif child.tag not in _SKIPPED:
            yield from _pieces(child)


def _cell(element: Any) -> str:
    """Return the text of all paragraphs inside an element."""
    return " ".join("".join(_pieces(paragraph)) for paragraph in element.iter(qn("w:p")))


def _level(style: Any) -> int | None:
    name = str(style.name)
    if _TITLE.fullmatch(name):
        return 0
    heading = _HEADING.fullmatch(name)
    if heading:
        return int(heading[1]) if heading[1] else "ABCDEF".index(heading[2]) + 1
    properties = style.element.pPr
    return None if properties is None else _outline_level(properties)


def _outline_level(properties: Any) -> int | None:
    found = properties.find(qn("w:outlineLvl"))
    value = "" if found is None else str(found.get(qn("w:val")))
    return int(value) + 1 if value.isdecimal() and int(value) < _BODY_LEVEL else None


def _depth(paragraph: Any) -> int:
    level = paragraph.find(f".//{qn('w:ilvl')}")
    value = "" if level is None else str(level.get(qn("w:val")))
    return int(value) if value.isdecimal() and int(value) < _BODY_LEVEL else 0
