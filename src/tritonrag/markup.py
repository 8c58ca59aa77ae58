"""Markdown, reStructuredText, HTML and plain text to blocks under headings.

A block is a paragraph, a list item, a table or code, in the words a reader sees, with a map from
each of its words back to the place in the file. Knows neither files nor tokens.
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal

import yaml
from bs4 import BeautifulSoup
from bs4.element import CData, NavigableString, PageElement, Tag
from docutils import nodes
from docutils.core import publish_doctree
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.front_matter import front_matter_plugin

Kind = Literal["text", "item", "table", "code"]


@dataclass(frozen=True)
class Block:
    """A piece of a document in reading order.

    ``text`` has single spaces where the file had soft line breaks; newlines are meant. ``marker``
    is a list item's bullet or number. ``words`` are ``(place in text, place in file, length)`` of
    the words found again in the file, in order; ``start`` is where the block begins there.
    """

    text: str
    kind: Kind
    heading_path: tuple[str, ...]
    marker: str
    start: int
    words: list[tuple[int, int, int]] = field(repr=False)

    def source_range(self, source: str, start: int, end: int) -> tuple[int, int]:
        """Return where ``text[start:end]`` stands in the file, as character offsets."""
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
            near = source.find(char, end, end + _MARKUP_CHARS)
            end = near + 1 if near >= 0 else end
        return end


@dataclass(frozen=True)
class Outline:
    """What a parser finds: the title the document gives itself, if any, and its blocks."""

    title: str | None
    blocks: list[Block]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the document says of itself, under the names of :class:`tritonrag.metadata.Metadata`."""


def parse_markdown(source: str) -> Outline:
    """Parse CommonMark with tables and YAML front matter."""
    return _Markdown(source).parse()


def parse_rst(source: str) -> Outline:
    """Parse reStructuredText; nothing is included from other files.

    Directives that docutils does not know, such as Sphinx's, are left out with their content.
    """
    return _Rst(source).parse()


def parse_html(source: str) -> Outline:
    """Parse HTML; scripts, styles, navigation and controls are left out."""
    return _Html(source).parse()


def parse_text(source: str) -> Outline:
    """Parse plain text: paragraphs end at blank lines, list items at the next one."""
    builder = _Builder(source)
    for paragraph in re.finditer(r"\S.*?(?=\s*\n[ \t\r]*\n|\s*\Z)", source, re.DOTALL):
        start, end = paragraph.span()
        for line in _ITEM_START.split(paragraph.group()):
            item = _ITEM.match(line)
            marker, text = (item.group(1) + " ", line[item.end() :]) if item else ("", line)
            text = " ".join(text.split())
            builder.add(text, "item" if item else "text", marker=marker, floor=start, ceiling=end)
    return builder.outline()


_MARKUP_CHARS = 4
"""How much markup, such as ``**``, may stand between a word and its full stop."""

_CLOSE, _NEAR, _FAR = 40, 400, 4000
"""How far apart two words may be in a file: as a rule, at most, and from one block to the next."""

_TELLING_CHARS = 4
"""A shorter line says nothing about where it stands."""

_WORD = re.compile(r"\w+")
_ACCESS = re.compile(r"^\W*access\W*:", re.IGNORECASE | re.MULTILINE)
"""A line of a front matter that says who may read the document."""

_ITEM = re.compile(r"\s*([-*+\u2022]|\d{1,3}[.)])\s+")
_ITEM_START = re.compile(r"\n(?=\s*(?:[-*+\u2022]|\d{1,3}[.)])\s)")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def _text_place(word: tuple[int, int, int]) -> int:
    return word[0]


class _Builder:
    """Collects blocks under the headings seen so far and finds their words in the file."""

    def __init__(self, source: str, searched: str | None = None) -> None:
        """``searched`` is what words are looked for in: ``source`` with markup blanked out."""
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
        self._headings = [above for above in self._headings if above[0] < level]
        self._headings.append((level, text))
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
    ) -> None:
        """Add a block whose words stand at or after ``floor`` and before ``ceiling``."""
        text = text.strip("\n").rstrip() if kind == "code" else _collapsed(text)
        if not any(char.isalnum() for char in text):
            return
        start = max(self.cursor, floor)
        words = self._located(text, floor, ceiling)
        path = tuple(name for _, name in self._headings)
        self._blocks.append(Block(text, kind, path, marker, words[0][1] if words else start, words))

    def outline(self, title: str | None = None) -> Outline:
        """Return what was collected; the title is not repeated in the heading paths."""
        title = self._title or title
        return Outline(title, [_without_title(block, title) for block in self._blocks])

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


def _collapsed(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _without_title(block: Block, title: str | None) -> Block:
    path = block.heading_path
    return replace(block, heading_path=path[1:]) if path and path[0] == title else block


class _Markdown:
    """Walks the tokens of markdown-it-py."""

    def __init__(self, source: str) -> None:
        self._builder = _Builder(source)
        self._tokens = iter(_MARKDOWN.parse(source))
        # markdown-it counts lines after making every line ending a newline.
        self._lines = [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", source))]
        self._length = len(source)
        self._lists: list[Iterator[str]] = []
        self._marker = ""
        self._metadata: Mapping[str, Any] = {}

    def parse(self) -> Outline:
        for token in self._tokens:
            self._take(token)
        title = " ".join(str(self._metadata.get("title") or "").split())
        return replace(self._builder.outline(title or None), metadata=self._metadata)

    def _take(self, token: Token) -> None:
        if token.type == "front_matter":
            self._metadata = _front_matter(token.content)
        elif token.type == "heading_open":
            text = _inline_text(next(self._tokens))
            floor, ceiling = self._range(token)
            self._builder.heading(int(token.tag[1]), text, floor=floor, ceiling=ceiling)
        elif token.type == "table_open":
            self._add("\n".join(self._table_rows()), "table", token)
        elif token.type in ("fence", "code_block"):
            self._add(token.content, "code", token)
        elif token.type == "html_block":
            self._add(_plain_html(token.content), "text", token)
        elif token.type == "inline":
            self._add(_inline_text(token), "item" if self._marker else "text", token)
        else:
            self._take_list(token)

    def _take_list(self, token: Token) -> None:
        if token.type == "bullet_list_open":
            self._lists.append(_bullets())
        elif token.type == "ordered_list_open":
            self._lists.append(_numbers(int(token.attrs.get("start", 1))))
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            self._lists.pop()
        elif token.type == "list_item_open":
            self._marker = "  " * (len(self._lists) - 1) + next(self._lists[-1])
        elif token.type == "list_item_close":
            self._marker = ""

    def _add(self, text: str, kind: Kind, token: Token) -> None:
        floor, ceiling = self._range(token)
        self._builder.add(text, kind, marker=self._marker, floor=floor, ceiling=ceiling)
        self._marker = ""

    def _range(self, token: Token) -> tuple[int, int]:
        first, last = token.map or (0, len(self._lines))
        return self._offset(first), self._offset(last)

    def _table_rows(self) -> Iterator[str]:
        cells: list[str] = []
        for token in self._tokens:
            if token.type == "table_close":
                return
            if token.type == "inline":
                cells.append(_inline_text(token))
            elif token.type == "tr_close":
                yield " | ".join(cells)
                cells = []

    def _offset(self, line: int) -> int:
        return self._lines[line] if line < len(self._lines) else self._length


_MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"]).use(front_matter_plugin)


def _inline_text(token: Token) -> str:
    return "".join(map(_inline_piece, token.children or []))


def _inline_piece(token: Token) -> str:
    if token.type == "softbreak":
        return " "
    if token.type == "hardbreak" or (token.type == "html_inline" and _BREAK.match(token.content)):
        return "\n"
    if token.type == "image":
        return _inline_text(token)
    return token.content if token.type in ("text", "code_inline", "text_special") else ""


def _front_matter(text: str) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        if _ACCESS.search(text):
            raise ValueError("its front matter names `access` but is not YAML") from error
        return {}
    return values if isinstance(values, dict) else {}


def _bullets() -> Iterator[str]:
    while True:
        yield "- "


def _numbers(start: int) -> Iterator[str]:
    while True:
        yield f"{start}. "
        start += 1


class _Rst:
    """Walks the document tree of docutils."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._builder = _Builder(source)
        self._marker = ""
        self._sought = 0

    def parse(self) -> Outline:
        tree = publish_doctree(self._source, settings_overrides=_RST_SETTINGS)
        for note in list(tree.findall(_is_noise)):
            _remove(note)
        self._walk(tree, 0)
        return self._builder.outline()

    def _walk(self, parent: nodes.Node, depth: int) -> None:
        for node in parent.children:
            self._take(node, depth)

    def _take(self, node: nodes.Node, depth: int) -> None:
        if isinstance(node, nodes.section):
            self._walk(node, depth + 1)
        elif isinstance(node, nodes.title):
            self._seek(node)
            self._builder.heading(max(depth, 1), node.astext())
        elif isinstance(node, nodes.table):
            rows = (_rst_row(row) for row in node.findall(nodes.row))
            self._builder.add("\n".join(rows), "table")
        elif isinstance(node, (nodes.literal_block, nodes.doctest_block, nodes.math_block)):
            self._add(node, "code")
        elif isinstance(node, (nodes.bullet_list, nodes.enumerated_list)):
            self._take_list(node, depth)
        elif isinstance(node, nodes.TextElement) and not isinstance(node, nodes.Invisible):
            self._add(node, "item" if self._marker or isinstance(node, nodes.line) else "text")
        elif not isinstance(node, (nodes.Invisible, nodes.system_message, nodes.raw)):
            self._walk(node, depth)

    def _take_list(self, node: nodes.Element, depth: int) -> None:
        numbered = isinstance(node, nodes.enumerated_list)
        markers = _numbers(int(node.get("start", 1))) if numbered else _bullets()
        for item, marker in zip(node.children, markers, strict=False):
            self._marker = marker
            self._walk(item, depth)
            self._marker = ""

    def _add(self, node: nodes.TextElement, kind: Kind) -> None:
        text = node.astext() if kind == "code" else " ".join(node.astext().split())
        self._seek(node)
        self._builder.add(text, kind, marker=self._marker)
        self._marker = ""

    def _seek(self, node: nodes.TextElement) -> None:
        """Go to where the first line of a node's own markup stands, after the node before."""
        line = node.rawsource.strip().partition("\n")[0]
        if len(line) < _TELLING_CHARS:
            return
        found = self._source.find(line, self._builder.cursor)
        if found < 0:
            found = self._source.find(line, self._sought)
        if found >= 0:
            self._sought = self._builder.cursor = found


_RST_SETTINGS = {
    "_disable_config": True,
    "doctitle_xform": False,
    "file_insertion_enabled": False,
    "halt_level": 5,
    "line_length_limit": 1 << 30,
    "raw_enabled": False,
    "report_level": 5,
    "syntax_highlight": "none",
}


def _is_noise(node: nodes.Node) -> bool:
    return isinstance(node, (nodes.system_message, nodes.footnote_reference, nodes.label))


def _remove(node: nodes.Node) -> None:
    """Take a node out of its tree, with the white space before it."""
    siblings = node.parent.children
    at = siblings.index(node)
    del siblings[at]
    before = siblings[at - 1] if at else None
    if isinstance(before, nodes.Text):
        siblings[at - 1] = nodes.Text(before.rstrip())


def _rst_row(row: nodes.row) -> str:
    return " | ".join(" ".join(cell.astext().split()) for cell in row.children)


class _Html:
    """Walks the tree of Beautiful Soup."""

    def __init__(self, source: str) -> None:
        # Words are looked for outside of tags; blanks keep every offset.
        blanked = re.sub(r"<[^<>]*>", lambda tag: " " * len(tag.group()), source)
        self._builder = _Builder(source, blanked)
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
        elif tag.name in _HTML_SKIPPED:
            return
        elif tag.name in _HTML_BLOCKS:
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
            self._builder.add("\n".join(_html_rows(tag)), "table", floor=self._floor)
        elif tag.name == "li" and not self._marker:  # The one before it has no end tag.
            self._marker = "- "
            self._walk(tag)
        elif tag.name in ("ul", "ol"):
            self._take_list(tag)
        else:
            self._walk(tag)

    def _take_list(self, tag: Tag) -> None:
        markers = _numbers(_html_start(tag)) if tag.name == "ol" else _bullets()
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


_HTML_SKIPPED = frozenset(
    {"button", "canvas", "head", "iframe", "math", "nav", "noscript", "object", "script", "select"}
    | {"style", "svg", "template", "textarea"}
)
_HTML_BLOCKS = frozenset(
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


def _plain_html(source: str) -> str:
    """Return the text of an HTML fragment."""
    soup = _soup(source)
    for tag in soup.find_all(sorted(_HTML_SKIPPED)):
        tag.decompose()
    return soup.get_text(" ")


def _html_rows(table: Tag) -> list[str]:
    """Return the rows of a table whose end tags may be missing, as HTML allows."""
    rows = [[""]]
    for node in table.descendants:
        if isinstance(node, Tag) and node.name == "tr":
            rows.append([])
        elif isinstance(node, Tag) and node.name in ("td", "th"):
            rows[-1].append("")
        elif rows[-1]:
            rows[-1][-1] += _html_piece(node)
    lines = (" | ".join(" ".join(cell.split()) for cell in row) for row in rows)
    return [line for line in lines if line]


def _html_piece(node: PageElement) -> str:
    if isinstance(node, Tag):
        return " " if node.name == "br" or node.name in _HTML_BLOCKS else ""
    return str(node) if type(node) in (NavigableString, CData) else ""


def _html_start(tag: Tag) -> int:
    start = str(tag.get("start", "1"))
    return int(start) if start.isdecimal() and len(start) < 10 else 1


PARSERS: dict[str, Callable[[str], Outline]] = {
    ".htm": parse_html,
    ".html": parse_html,
    ".markdown": parse_markdown,
    ".md": parse_markdown,
    ".rst": parse_rst,
    ".txt": parse_text,
}
"""The parser of each kind of file, by suffix in lower case."""
