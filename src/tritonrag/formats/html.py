"""HTML; scripts, styles, navigation and controls are left out, and nothing is fetched."""

from __future__ import annotations

import re
import warnings
from itertools import dropwhile, takewhile

from bs4 import BeautifulSoup
from bs4.element import CData, NavigableString, PageElement, Tag

from tritonrag.formats.building import LocatedBlocks, bullets, numbers, table_row
from tritonrag.formats.decoding import decoded_html
from tritonrag.formats.front_matter import check_closes_nothing
from tritonrag.formats.outline import Kind, Outline


def parse(content: bytes) -> Outline:
    """Parse an HTML file."""
    text = decoded_html(content)
    check_closes_nothing(text)
    return parse_html(text)


def parse_html(source: str) -> Outline:
    """Parse HTML."""
    return _Html(source).parse()


class _Html:
    """Walks the tree of Beautiful Soup."""

    def __init__(self, source: str) -> None:
        # Words are looked for outside of tags; blanks keep every offset.
        blanked = re.sub(r"<[^<>]*>", lambda tag: " " * len(tag.group()), source)
        self._builder = LocatedBlocks(source, blanked)
        self._soup = _soup(source)
        self._lines = [0, *(match.end() for match in re.finditer("\n", source))]
        self._inline: list[str] = []
        self._floor = 0
        self._marker = ""

    def parse(self) -> Outline:
        title = self._soup.title
        self._walk(self._soup)
        self._flush()
        return self._builder.outline(" ".join(title.get_text().split()) or None if title else None)

    def _walk(self, parent: Tag) -> None:
        for node in parent.children:
            if isinstance(node, Tag):
                self._take(node)
            elif type(node) in (NavigableString, CData):
                self._inline.append(" ".join(str(node).split("\n")))

    def _take(self, tag: Tag) -> None:
        if tag.name == "br":
            self._inline.append("\n")
        elif tag.name in _SKIPPED:
            return
        elif tag.name in _BLOCKS:
            self._flush()
            self._floor = self._offset(tag)
            self._take_block(tag)
            self._flush()
        else:
            self._walk(tag)

    def _take_block(self, tag: Tag) -> None:
        if re.fullmatch("h[1-6]", tag.name):
            self._builder.heading(int(tag.name[1]), tag.get_text(), floor=self._floor)
        elif tag.name == "pre":
            self._builder.add(tag.get_text(), "code", floor=self._floor)
        elif tag.name == "table" and not tag.find("table"):
            rows, heads = "\n".join(_rows(tag)), _header_rows(tag)
            self._builder.add(rows, "table", floor=self._floor, header_rows=heads)
        elif tag.name == "li" and not self._marker:  # The one before it has no end tag.
            self._marker = "- "
            self._walk(tag)
        elif tag.name in ("ul", "ol"):
            self._take_list(tag)
        else:
            self._walk(tag)

    def _take_list(self, tag: Tag) -> None:
        markers = numbers(_start(tag)) if tag.name == "ol" else bullets()
        for node in tag.children:
            if isinstance(node, Tag) and node.name == "li":
                self._marker = next(markers)
                self._take(node)
                self._marker = ""
            elif isinstance(node, Tag):
                self._take(node)

    def _flush(self) -> None:
        text = "".join(self._inline)
        self._inline.clear()
        if text.strip():
            kind: Kind = "item" if self._marker else "text"
            self._builder.add(text, kind, marker=self._marker, floor=self._floor)
            self._marker = ""

    def _offset(self, tag: Tag) -> int:
        if tag.sourceline is None or tag.sourcepos is None:
            return 0
        return self._lines[tag.sourceline - 1] + tag.sourcepos


_SKIPPED = frozenset(
    {"button", "canvas", "head", "iframe", "math", "nav", "noscript", "object", "script", "select"}
    | {"style", "svg", "template", "textarea"}
)
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl"}
    | {"dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5"}
    | {"h6", "header", "hr", "html", "li", "main", "ol", "p", "pre", "section", "summary"}
    | {"table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"}
)


def _soup(source: str) -> BeautifulSoup:
    with warnings.catch_warnings():
        # It warns of text that looks like a file name, and of XHTML.
        warnings.simplefilter("ignore")
        return BeautifulSoup(source, "html.parser")


def plain_html(source: str) -> str:
    """Return the text of an HTML fragment."""
    soup = _soup(source)
    for tag in soup.find_all(sorted(_SKIPPED)):
        tag.decompose()
    return soup.get_text(" ")


def _rows(table: Tag) -> list[str]:
    """Return the rows of a table whose end tags may be missing, as HTML allows."""
    rows = [[""]]
    for node in table.descendants:
        if isinstance(node, Tag) and node.name == "tr":
            rows.append([])
        elif isinstance(node, Tag) and node.name in ("td", "th"):
            rows[-1].append("")
        elif rows[-1]:
            rows[-1][-1] += _piece(node)
    lines = map(table_row, rows)
    return [line for line in lines if line]


def _header_rows(table: Tag) -> int:
    """Return 1 where the first row holds headings only; end tags may be missing here too."""
    names = [tag.name for tag in table.find_all(("tr", "th", "td"))]
    first = list(takewhile(lambda name: name != "tr", dropwhile(lambda name: name == "tr", names)))
    return int("th" in first and "td" not in first)


def _piece(node: PageElement) -> str:
    if isinstance(node, Tag):
        return " " if node.name == "br" or node.name in _BLOCKS else ""
    return str(node) if type(node) in (NavigableString, CData) else ""


def _start(tag: Tag) -> int:
    start = str(tag.get("start", "1"))
    return int(start) if start.isdecimal() and len(start) < 10 else 1
