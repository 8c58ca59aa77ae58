"""reStructuredText; nothing is included from other files.

Directives that docutils does not know, such as Sphinx's, are left out with their content.
"""

from __future__ import annotations

from docutils import nodes
from docutils.core import publish_doctree

from tritonrag.formats.building import LocatedBlocks, bullets, numbers, table_row
from tritonrag.formats.decoding import decoded
from tritonrag.formats.front_matter import check_closes_nothing
from tritonrag.formats.outline import Kind, Outline

_TELLING_CHARS = 4
"""A shorter line says nothing about where it stands."""


def parse(content: bytes) -> Outline:
    """Parse a reStructuredText file."""
    text = decoded(content)
    check_closes_nothing(text)
    return _Rst(text).parse()


class _Rst:
    """Walks the document tree of docutils."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._builder = LocatedBlocks(source)
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
            rows = (_row(row) for row in node.findall(nodes.row))
            heads = sum(len(head.children) for head in node.findall(nodes.thead))
            self._builder.add("\n".join(rows), "table", header_rows=heads)
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
        markers = numbers(int(node.get("start", 1))) if numbered else bullets()
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


def _row(row: nodes.row) -> str:
    return table_row(cell.astext() for cell in row.children)
