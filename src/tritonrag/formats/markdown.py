"""Markdown: CommonMark with tables and YAML front matter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.front_matter import front_matter_plugin

from tritonrag.errors import InvalidRequest
from tritonrag.formats.building import LocatedBlocks, bullets, numbers
from tritonrag.formats.decoding import decoded
from tritonrag.formats.front_matter import check_closes_nothing, check_names_no_access, load_yaml
from tritonrag.formats.html import plain_html
from tritonrag.formats.outline import Kind, Outline

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def parse(content: bytes) -> Outline:
    """Parse a Markdown file."""
    return parse_markdown(decoded(content))


def parse_markdown(source: str) -> Outline:
    """Parse Markdown."""
    made = _Markdown(source)
    outline = made.parse()
    check_closes_nothing(source[made.read :], braces=True)
    return outline


class _Markdown:
    """Walks the tokens of markdown-it-py."""

    def __init__(self, source: str) -> None:
        self._builder = LocatedBlocks(source)
        self._tokens = iter(_MARKDOWN.parse(source))
        # markdown-it counts lines after making every line ending a newline.
        self._lines = [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", source))]
        self._length = len(source)
        self._lists: list[Iterator[str]] = []
        self._marker = ""
        self._metadata: Mapping[str, Any] = {}
        self.read = 0
        """Where the front matter ends of which metadata was read."""

    def parse(self) -> Outline:
        for token in self._tokens:
            self._take(token)
        title = self._metadata.get("title")
        text = " ".join(str(title).split()) if isinstance(title, str | int | float | date) else ""
        return self._builder.outline(text or None, self._metadata)

    def _take(self, token: Token) -> None:
        if token.type == "front_matter":
            self._metadata = _front_matter(token.content)
            self.read = self._range(token)[1] if self._metadata else 0
        elif token.type == "heading_open":
            text = _inline_text(next(self._tokens))
            floor, ceiling = self._range(token)
            self._builder.heading(int(token.tag[1]), text, floor=floor, ceiling=ceiling)
        elif token.type == "table_open":
            self._add("\n".join(self._table_rows()), "table", token, header_rows=1)
        elif token.type in ("fence", "code_block"):
            self._add(token.content, "code", token)
        elif token.type == "html_block":
            self._add(plain_html(token.content), "text", token)
        elif token.type == "inline":
            self._add(_inline_text(token), "item" if self._marker else "text", token)
        else:
            self._take_list(token)

    def _take_list(self, token: Token) -> None:
        if token.type == "bullet_list_open":
            self._lists.append(bullets())
        elif token.type == "ordered_list_open":
            self._lists.append(numbers(int(token.attrs.get("start", 1))))
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            self._lists.pop()
        elif token.type == "list_item_open":
            self._marker = "  " * (len(self._lists) - 1) + next(self._lists[-1])
        elif token.type == "list_item_close":
            self._marker = ""

    def _add(self, text: str, kind: Kind, token: Token, header_rows: int = 0) -> None:
        floor, ceiling = self._range(token)
        self._builder.add(
            text,
            kind,
            marker=self._marker,
            floor=floor,
            ceiling=ceiling,
            header_rows=header_rows,
        )
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
        values = load_yaml(text)
    except InvalidRequest:
        raise
    except Exception:  # YAML's constructors raise anything.
        values = None
    if not isinstance(values, dict):
        check_names_no_access(text)
        return {}
    return values
